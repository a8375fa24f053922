from math import log2

import pytest

from gr_components.errors import ConfigError, DataError
from gr_components.evaluation import Evaluation, evaluate_run

# Graded judgements of 0..3 with unjudged documents in the run, as in TREC's Deep Learning track.
QRELS = {"q1": {"a": 3, "b": 1, "c": 0, "d": 2}, "q2": {"x": 1}}
RUN = {"q1": [("c", 9.0), ("b", 8.0), ("?", 7.0), ("a", 6.0)], "q2": [("y", 2.0), ("x", 1.0)]}


def test_values_computed_by_hand():
    got = evaluate_run(RUN, QRELS, ["nDCG@10", "RR@10", "R@2", "R(rel=2)@100", "RR(rel=2)@10", "Success@1", "P@2"])
    ideal = 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert got.per_question["nDCG@10"]["q1"] == pytest.approx((1 / log2(3) + 3 / log2(5)) / ideal)
    assert got.per_question["RR@10"] == {"q1": 1 / 2, "q2": 1 / 2}
    assert got.per_question["R@2"] == {"q1": pytest.approx(1 / 3), "q2": 1.0}
    assert got.per_question["R(rel=2)@100"]["q1"] == 1 / 2
    assert got.per_question["RR(rel=2)@10"]["q1"] == 1 / 4
    assert got.means["Success@1"] == 0.0
    assert got.means["P@2"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert got.num_questions == 2


def test_names_are_as_ir_measures_prints_them():
    assert list(evaluate_run(RUN, QRELS, ["NDCG@10", "MRR@10", "Recall@5"]).means) == ["nDCG@10", "RR@10", "R@5"]


def test_missing_and_empty_questions_count_as_zero_and_unjudged_ones_not_at_all():
    full = evaluate_run({"q2": RUN["q2"]}, {"q2": QRELS["q2"]}, ["RR@10"]).means["RR@10"]
    for run in ({"q2": RUN["q2"]}, {"q2": RUN["q2"], "q1": []}, {"q2": RUN["q2"], "other": [("x", 1.0)]}):
        assert evaluate_run(run, QRELS, ["RR@10", "nDCG@10"]).means["RR@10"] == full / 2
    assert evaluate_run({}, QRELS, ["RR@10", "nDCG@10"]).means == {"RR@10": 0.0, "nDCG@10": 0.0}
    assert evaluate_run(RUN, {}, ["RR@10"]).means == {"RR@10": 0.0}


@pytest.mark.parametrize("measure", ["nDCG@10", "RR@10", "Success@1", "AP"])
def test_ties_are_broken_by_document_id_for_every_provider(measure):
    tied = {"q": [("c", 1.0), ("a", 1.0), ("b", 1.0)]}
    in_order = {"q": [("a", 3.0), ("b", 2.0), ("c", 1.0)]}
    for relevant in "abc":
        qrels = {"q": {relevant: 1}}
        assert evaluate_run(tied, qrels, [measure]) == evaluate_run(in_order, qrels, [measure])
    assert evaluate_run(tied, {"q": {"a": 1}}, [measure]).means != evaluate_run(tied, {"q": {"c": 1}}, [measure]).means


def test_large_and_tiny_scores_keep_their_order():
    run = {"q": [("b", 1e30 + 1), ("a", 1e-30), ("c", -1e30), ("d", 0.0)]}
    assert evaluate_run(run, {"q": {"a": 1}}, ["RR@10"]).means["RR@10"] == 1 / 2


def test_the_inputs_are_left_alone():
    run, qrels = {"q": [("b", 1.0), ("a", 2.0)]}, {"q": {"a": 1}}
    evaluate_run(run, qrels)
    assert run == {"q": [("b", 1.0), ("a", 2.0)]}
    assert qrels == {"q": {"a": 1}}


def test_bad_measures_and_runs_are_named():
    with pytest.raises(ConfigError, match="'nDCF@10' is no measure"):
        evaluate_run(RUN, QRELS, ["nDCF@10"])
    with pytest.raises(DataError, match="question 'q2' hold a document twice"):
        evaluate_run({"q2": [("x", 1.0), ("x", 0.5)]}, QRELS)


def test_restriction_and_merging():
    evaluation = evaluate_run(RUN, QRELS, ["RR@10"]).merged(Evaluation({"EM": {"q1": 1.0, "q2": 0.0}}))
    assert evaluation.restricted(["q1"]).means == {"RR@10": 0.5, "EM": 1.0}
    with pytest.raises(KeyError):
        evaluation.restricted(["q3"])
