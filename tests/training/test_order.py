"""Order of examples: a function of (seed, step) that visits everything once per pass."""

import numpy as np
import pytest

from gr_components.errors import ConfigError
from gr_training.order import Turn


def rows(turn: Turn, batch: int, examples: int) -> list[int]:
    return turn.rows(turn.positions(batch), examples)


def test_a_pass_visits_every_example_once_and_passes_differ():
    seen = [row for step in range(10) for row in rows(Turn(3, step), 5, 25)]
    assert sorted(seen[:25]) == sorted(seen[25:]) == list(range(25))
    assert seen[:25] != seen[25:]


def test_order_depends_on_the_seed_alone():
    assert rows(Turn(1, 4), 8, 100) == rows(Turn(1, 4), 8, 100)
    assert rows(Turn(1, 4), 8, 100) != rows(Turn(2, 4), 8, 100)


@pytest.mark.parametrize(("rounds", "processes"), [(1, 2), (2, 1), (2, 3)])
def test_rounds_and_processes_share_the_same_examples(rounds, processes):
    whole = rows(Turn(7, 5), 12 * rounds, 1000)
    parts = [
        row
        for r in range(rounds)
        for p in range(processes)
        for row in rows(Turn(7, 5, r, rounds, p, processes), 12, 1000)
    ]
    assert sorted(parts) == sorted(whole)
    draws = {
        position: Turn(7, 5, r, rounds, p, processes).generator(position).random()
        for r in range(rounds)
        for p in range(processes)
        for position in Turn(7, 5, r, rounds, p, processes).positions(12)
    }
    assert draws == {position: Turn(7, 5).generator(position).random() for position in draws}
    assert len(set(draws.values())) == 12 * rounds


def test_every_process_needs_an_example():
    with pytest.raises(ConfigError, match="A step of 4 examples cannot be shared by 8 processes"):
        Turn(seed=1, step=0, rank=3, num_processes=8).positions(4)


def test_dropout_differs_between_steps_rounds_and_processes():
    seeds = {Turn(1, step, r, 2, p, 2).torch_seed for step in range(5) for r in range(2) for p in range(2)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert isinstance(Turn(1, 0).positions(3), np.ndarray)
