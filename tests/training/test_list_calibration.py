"""Calibration of generative scores: what was put in comes out, and bad input is named."""

import math

import numpy as np
import pytest

from gr_components.decoding.calibration import Calibration
from gr_components.errors import DataError, ModelError
from gr_training.generative.list_calibration import fit_calibration, log_loss


def _drawn(true, questions, seed, documents=30):
    """Lists whose relevant document is drawn from the probabilities that a calibration gives."""
    generator = np.random.default_rng(seed)
    run, relevant = {}, {}
    for q in range(questions):
        scores_D = np.sort(generator.gamma(4.0, 8.0, documents))[::-1]
        chances = true.probabilities(scores_D)
        chosen = generator.choice(documents + 1, p=[*chances, 1 - chances.sum()])
        run[f"q{q}"] = [(f"d{d}", float(score)) for d, score in enumerate(scores_D)]
        relevant[f"q{q}"] = frozenset([f"d{chosen}"])
    return run, relevant


@pytest.mark.parametrize(("slope", "absent"), [(1.4, 8.0), (0.6, 5.0), (2.5, 22.0)])
def test_the_true_calibration_is_found(slope, absent):
    true = Calibration(slope, absent)
    run, relevant = _drawn(true, 2000, 7)
    found = fit_calibration(run, relevant)
    assert found.slope == pytest.approx(slope, rel=0.1)
    assert found.absent == pytest.approx(absent, rel=0.1, abs=0.3)
    assert log_loss(found, run, relevant) <= log_loss(true, run, relevant) + 1e-3


def test_probabilities_are_what_they_say():
    true = Calibration(1.2, 7.0)
    found = fit_calibration(*_drawn(true, 1500, 1))
    run, relevant = _drawn(true, 1500, 2)
    said, hits = [], []
    for name, ranked in run.items():
        chances = found.probabilities(np.array([score for _, score in ranked]))
        said.append(chances[0])
        hits.append(ranked[0][0] in relevant[name])
    for low, high in ((0.0, 0.3), (0.3, 0.6), (0.6, 1.01)):
        inside = [low <= chance < high for chance in said]
        assert np.mean(np.array(hits)[inside]) == pytest.approx(np.mean(np.array(said)[inside]), abs=0.06)


def test_order_stays_and_mass_is_at_most_one():
    calibration = Calibration(1.4, 5.0, depth=5)
    scores_D = np.array([90.0, 80.0, 80.0, 12.0, 3.0, 1.0, 0.0])
    chances = calibration.probabilities(scores_D)
    assert (np.diff(chances) <= 0).all()
    assert chances[1] == chances[2]
    assert 0 < chances[:5].sum() < 1
    assert np.isfinite(calibration.probabilities(np.array([1e9, 1.0]))).all()
    assert len(calibration.probabilities(np.empty(0))) == 0


def test_lists_that_always_hold_the_answer_stay_finite():
    run = {f"q{q}": [("good", 50.0), ("bad", 20.0)] for q in range(50)}
    found = fit_calibration(run, {name: frozenset(["good"]) for name in run})
    assert np.isfinite([found.slope, found.absent]).all()
    assert found.probabilities(np.array([50.0, 20.0]))[0] > 0.9


def test_scores_that_order_the_wrong_way_round_are_refused():
    run = {f"q{q}": [("bad", 50.0), ("good", 20.0)] for q in range(50)}
    with pytest.raises(DataError, match="a higher score is no better over 50 questions"):
        fit_calibration(run, {name: frozenset(["good"]) for name in run})


def test_nothing_to_fit_is_refused():
    with pytest.raises(DataError, match="none of 1 questions has a relevant document next to another one"):
        fit_calibration({"q": [("a", 2.0), ("b", 1.0)]}, {"q": frozenset(["c"])})


@pytest.mark.parametrize(
    "damage",
    [{"slope": None}, {"slope": -1.0}, {"depth": 0}, {"depth": math.inf}, {"absent": "x"}, {"slope": math.nan}],
)
def test_damaged_values_name_the_model(damage):
    data = {**Calibration(1.4, 5.0).to_dict(), **damage}
    with pytest.raises(ModelError, match=r"The calibration of 'my/model' is damaged .* Train or calibrate it again"):
        Calibration.from_dict(data, "my/model")


@pytest.mark.parametrize("data", [[1.4, 5.0], 1.4, "on", {}])
def test_what_is_no_calibration_names_the_model(data):
    with pytest.raises(ModelError, match="The calibration of 'my/model' is damaged"):
        Calibration.from_dict(data, "my/model")


def test_questions_without_judgements_have_nothing_to_find():
    run = {"judged": [("a", 40.0), ("b", 10.0)], "not judged": [("a", 40.0), ("b", 10.0)]}
    calibration = fit_calibration(run, {"judged": frozenset(["a"])})
    none = 1 - calibration.probabilities(np.array([40.0, 10.0])).sum()
    assert log_loss(calibration, {"not judged": run["not judged"]}, {}) == pytest.approx(-math.log(none))


def test_round_trip():
    calibration = Calibration(1.4, 5.0, 1.5, 50)
    assert Calibration.from_dict({**calibration.to_dict(), "log_loss": 0.4}, "m") == calibration
