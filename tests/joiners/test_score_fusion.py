"""ScoreFusionJoiner: equal to Haystack's joiner on ordinary lists, and right where that one loses something."""

import math
import random

import pytest
from haystack import Document
from haystack.components.joiners import DocumentJoiner

from gr_components.errors import ConfigError, NumericsError
from gr_components.joiners.score_fusion import ScoreFusionJoiner
from gr_components.testing import ComponentContract

_MODES = ["distribution_based_rank_fusion", "reciprocal_rank_fusion"]
_KEYS = [{"text": "levi's stadium", "view": "body"}]


def _list(**scores):
    return [Document(id=name, content=f"text {name}", score=score) for name, score in scores.items()]


def _ordinary(seed, lists=3):
    """Lists of 20 documents, many in several of them, best first, on scales like those of BM25, cosines and sums."""
    generator = random.Random(seed)
    scales = [(15.0, 4.0), (0.4, 0.2), (200.0, 90.0)]
    found = []
    for mean, spread in scales[:lists]:
        ids = generator.sample(range(40), 20)
        documents = [Document(id=str(n), content=f"{n}", score=generator.gauss(mean, spread)) for n in ids]
        found.append(sorted(documents, key=lambda document: -document.score))
    return found


def _scores(joiner, *lists):
    return {document.id: document.score for document in joiner.run(documents=list(lists))["documents"]}


class TestContract(ComponentContract):
    expected_type = "gr_components.joiners.score_fusion.ScoreFusionJoiner"

    @pytest.fixture
    def component(self):
        return ScoreFusionJoiner()

    @pytest.fixture
    def run_arguments(self):
        return {"documents": _ordinary(0)}

    @pytest.fixture
    def pipeline_run_arguments(self, run_arguments):
        return {"documents": run_arguments["documents"][0]}  # one value is one list: the input is variadic

    @pytest.fixture
    def more_run_arguments(self):
        return [{"documents": _ordinary(seed), "top_k": seed} for seed in range(1, 5)]

    @pytest.fixture
    def other_init_arguments(self):
        return {"combine": "sum", "weights": [1.0, 0.5, 2.0], "calibrated": [False, False, True], "top_k": 3}


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("seed", range(20))
def test_ordinary_lists_give_what_haystack_gives(mode, seed):
    lists = _ordinary(seed, lists=seed % 3 + 1)
    theirs = DocumentJoiner(join_mode=mode, top_k=25).run(documents=lists)["documents"]
    ours = ScoreFusionJoiner(join_mode=mode, top_k=25).run(documents=lists)["documents"]
    assert [document.id for document in ours] == [document.id for document in theirs]
    assert [document.score for document in ours] == pytest.approx([document.score for document in theirs], abs=1e-12)
    assert [document.content for document in ours] == [document.content for document in theirs]


def test_weights_of_ranks_are_those_of_haystack():
    lists, weights = _ordinary(3), [1.0, 0.5, 2.5]
    theirs = DocumentJoiner(join_mode="reciprocal_rank_fusion", weights=weights).run(documents=lists)["documents"]
    ours = ScoreFusionJoiner(join_mode="reciprocal_rank_fusion", weights=weights).run(documents=lists)["documents"]
    assert [document.id for document in ours] == [document.id for document in theirs]
    assert [document.score for document in ours] == pytest.approx([document.score for document in theirs], abs=1e-12)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_metadata_of_all_copies_is_kept(mode, order):
    words = [
        Document(id="a", content="text", score=9.0, meta={"title": "A", "source": "words"}),
        Document(id="b", content="b", score=1.0),
    ]
    keys = [
        Document(id="c", content="c", score=300.0, meta={"identifiers": _KEYS}),
        Document(id="a", content="text", score=90.0, meta={"title": "A", "identifiers": _KEYS, "source": "keys"}),
    ]
    joiner = ScoreFusionJoiner(join_mode=mode)
    found = {d.id: d for d in joiner.run(documents=[(words, keys)[n] for n in order])["documents"]}
    assert found["a"].meta == {"title": "A", "identifiers": _KEYS, "source": "words"}
    assert found["c"].meta == {"identifiers": _KEYS}
    assert found["b"].meta == {}
    assert words[0].meta == {"title": "A", "source": "words"}


def test_lists_that_say_nothing_get_the_middle():
    good = _list(a=0.9, b=0.5, c=0.1)
    assert _scores(ScoreFusionJoiner(), good, _list(d=15.0))["d"] == 0.5
    assert _scores(ScoreFusionJoiner(), _list(d=300.0, e=300.0, f=300.0)) == {"d": 0.5, "e": 0.5, "f": 0.5}
    joined = _scores(ScoreFusionJoiner(), good, _list(d=15.0))
    assert max(joined, key=joined.get) == "a"
    tiny = _list(d=1.0, e=1.0 + 2**-52, f=1.0)  # scores that differ in the last bit only
    assert all(0 <= score <= 1 for score in _scores(ScoreFusionJoiner(), tiny).values())


def test_combinations_by_hand():
    # Two scores each: mean +- one deviation, so 2/3 and 1/3 on the common scale.
    lists = _list(a=3.0, b=1.0), _list(b=30.0, c=10.0)
    high, low = 2 / 3, 1 / 3

    def scores(**settings):
        return pytest.approx(_scores(ScoreFusionJoiner(**settings), *lists))

    assert scores() == {"a": high, "b": high, "c": low}
    assert scores(combine="sum") == {"b": (low + high) / 2, "a": high / 2, "c": low / 2}
    assert scores(combine="mean") == {"a": high, "b": (low + high) / 2, "c": low}
    assert scores(combine="sum", weights=[3.0, 1.0]) == {"a": 0.75 * high, "b": 0.75 * low + 0.25 * high, "c": low / 4}
    assert scores(combine="mean", weights=[3, 1]) == {"a": high, "b": 0.75 * low + 0.25 * high, "c": low}
    assert scores(combine="mean", weights=[1, 0]) == {"a": high, "b": low, "c": 0.0}


def test_calibrated_lists_are_taken_as_they_are():
    words, keys = _list(a=3.0, b=1.0), _list(b=0.9, c=0.04)
    joiner = ScoreFusionJoiner(combine="sum", weights=[2.0, 1.0], calibrated=[False, True])
    expected = {"a": 2 / 3 * 2 / 3, "b": 2 / 3 * 1 / 3 + 0.9 / 3, "c": 0.04 / 3}
    assert _scores(joiner, words, keys) == pytest.approx(expected)
    assert _scores(joiner, words, _list(b=0.9)) == pytest.approx({"a": 4 / 9, "b": 2 / 9 + 0.9 / 3})
    by_rank = ScoreFusionJoiner(join_mode="reciprocal_rank_fusion", calibrated=[False, True])
    assert _scores(by_rank, words, keys) == _scores(ScoreFusionJoiner(join_mode="reciprocal_rank_fusion"), words, keys)


@pytest.mark.parametrize("score", [1.5, -0.1, None])
def test_a_calibrated_list_without_probabilities_is_refused(score):
    joiner = ScoreFusionJoiner(calibrated=[False, True])
    with pytest.raises(NumericsError, match=r"'x' has the score .* in a list that is said to be calibrated"):
        joiner.run(documents=[_list(a=3.0, b=1.0), [Document(id="x", content="x", score=score)]])


def test_calibrated_must_fit_the_lists():
    with pytest.raises(ConfigError, match="calibrated has 1 entries for 2 lists"):
        ScoreFusionJoiner(calibrated=[True]).run(documents=[_list(a=0.3), _list(a=0.1)])
    for wrong in (["yes"], True, "yes"):
        with pytest.raises(ConfigError, match="calibrated must be a list of true and false, got"):
            ScoreFusionJoiner(calibrated=wrong)


def test_a_document_twice_in_a_list_counts_once():
    once, twice = _list(a=3.0, b=1.0), [*_list(a=3.0, b=1.0), *_list(a=2.0)]
    for joiner in (ScoreFusionJoiner(combine="sum"), ScoreFusionJoiner(join_mode="reciprocal_rank_fusion")):
        assert _scores(joiner, twice) == _scores(joiner, once)


def test_documents_without_score_come_last_in_their_list():
    scores = _scores(ScoreFusionJoiner(), [*_list(a=-1.0, b=-3.0), Document(id="c", content="c")])
    assert scores["a"] > scores["b"] == scores["c"]
    assert _scores(ScoreFusionJoiner(), [Document(id="c", content="c")]) == {"c": 0.5}


def test_top_k_zero_is_none_and_ties_keep_their_order():
    joiner = ScoreFusionJoiner(top_k=1)
    lists = [_list(a=3.0, b=1.0), _list(c=30.0, d=10.0)]
    assert joiner.run(documents=lists, top_k=0)["documents"] == []
    assert [d.id for d in joiner.run(documents=lists)["documents"]] == ["a"]
    assert [d.id for d in joiner.run(documents=lists, top_k=9)["documents"]] == ["a", "c", "b", "d"]
    assert joiner.run(documents=[[], []])["documents"] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"join_mode": "merge"}, "join_mode must be one of distribution_based_rank_fusion, reciprocal_rank_fusion"),
        ({"combine": "min"}, "combine must be one of max, sum, mean, got 'min'"),
        ({"weights": [1.0]}, "weights have no effect with combine='max'"),
        ({"combine": "sum", "weights": [1.0, -1.0]}, "Each of weights must be at least 0, got -1.0"),
        ({"combine": "sum", "weights": [0, 0]}, r"weights must not all be 0, got \[0, 0\]"),
        ({"combine": "sum", "weights": 2.0}, "weights must be a list of numbers, got 2.0"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ScoreFusionJoiner(**settings)


def test_bad_arguments():
    with pytest.raises(ConfigError, match="weights has 2 entries for 1 lists"):
        ScoreFusionJoiner(combine="sum", weights=[1.0, 2.0]).run(documents=[_list(a=1.0)])
    with pytest.raises(ConfigError, match="top_k must be a whole number of at least 0, got -1"):
        ScoreFusionJoiner().run(documents=[], top_k=-1)
    for score in (math.nan, math.inf):
        with pytest.raises(NumericsError, match="'a' has the score"):
            ScoreFusionJoiner().run(documents=[_list(a=score, b=1.0)])
