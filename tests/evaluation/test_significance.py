from itertools import product

import numpy as np
import pytest

from gr_components.errors import ConfigError
from gr_components.evaluation import bootstrap_interval, holm, paired_randomisation, smallest_detectable_difference


def naive_p(first, second):
    difference = [a - b for a, b in zip(first, second, strict=True)]
    observed = abs(sum(difference))
    signs = list(product((-1, 1), repeat=len(difference)))
    hits = sum(
        abs(sum(s * d for s, d in zip(pattern, difference, strict=True))) >= observed - 1e-9 for pattern in signs
    )
    return hits / len(signs)


def test_few_questions_are_counted_exactly():
    draw = np.random.default_rng(0)
    for _ in range(5):
        first, second = draw.random(9).round(1), draw.random(9).round(1)
        assert paired_randomisation(first, second) == pytest.approx(naive_p(first, second))
    assert paired_randomisation([1, 1, 1, 1], [0, 0, 0, 0]) == 2 / 16


def test_random_rounds_agree_with_the_exact_value():
    draw = np.random.default_rng(1)
    first, second = draw.random(12) + 0.15, draw.random(12)
    exact = naive_p(first, second)
    assert 0.01 < exact < 0.9
    assert paired_randomisation(first, second, rounds=4000) == pytest.approx(exact, abs=0.03)


def test_symmetric_repeatable_and_bounded():
    draw = np.random.default_rng(2)
    first, second = draw.random(200), draw.random(200)
    p = paired_randomisation(first, second)
    assert p == paired_randomisation(second, first) == paired_randomisation(first, second)
    assert paired_randomisation(first, first) == paired_randomisation([], []) == 1.0
    assert paired_randomisation(first + 1, second) == pytest.approx(1 / 20_001)


def test_under_the_null_p_is_uniform():
    draw = np.random.default_rng(3)
    p_values = [paired_randomisation(draw.random(30), draw.random(30), rounds=400, seed=i) for i in range(300)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_different_numbers_of_questions_are_refused():
    with pytest.raises(ConfigError, match="got 2 and 1"):
        paired_randomisation([1, 2], [1])


def test_bootstrap_interval_is_that_of_the_normal_for_many_questions():
    values = np.random.default_rng(4).normal(0.5, 0.2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.002)
    assert high == pytest.approx(values.mean() + half, abs=0.002)
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert bootstrap_interval([]) == (0.0, 0.0)
    with pytest.raises(ConfigError, match="got 95"):
        bootstrap_interval(values, confidence=95)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_detectable_difference_is_found_with_the_stated_power():
    draw = np.random.default_rng(5)
    spread, questions = 0.3, 60
    delta = smallest_detectable_difference(draw.normal(0, spread, 5000)[:questions] * 1.0)
    expected = 2.802 * spread / questions**0.5
    assert delta == pytest.approx(expected, rel=0.25)
    zeros = np.zeros(questions)
    found = [
        paired_randomisation(draw.normal(expected, spread, questions), zeros, rounds=400) < 0.05 for _ in range(150)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)
    assert smallest_detectable_difference([0.1]) == float("inf")
