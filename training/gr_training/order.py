"""
Which examples a step sees: a pure function of (seed, step), so that a resumed run needs no saved random state.

The examples of all steps form one endless sequence of positions 0, 1, 2, ...; each pass over the data visits every
example once in an order of its own. Everything random about an example is drawn from a generator of its position, so
that it does not matter which of several processes, or which accumulation round, handles it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gr_components.errors import ConfigError

_ORDER, _EXAMPLE, _DROPOUT = 0, 1, 2


@dataclass(frozen=True)
class Turn:
    """
    The place of one batch within a training run.

    :param seed: Seed of the run.
    :param step: Optimiser step, from 0.
    :param round: Accumulation round within the step, from 0.
    :param num_rounds: Rounds of each step.
    :param rank: Which process this is, from 0.
    :param num_processes: How many processes share each round.
    """

    seed: int
    step: int
    round: int = 0
    num_rounds: int = 1
    rank: int = 0
    num_processes: int = 1

    def positions(self, batch_size: int) -> npt.NDArray[np.int64]:
        """
        Positions, in the endless sequence, of this process's examples.

        :param batch_size: Examples of one round over all processes.
        :raises ConfigError: If there are fewer than processes.
        """
        if batch_size < self.num_processes:
            msg = f"A step of {batch_size} examples cannot be shared by {self.num_processes} processes. Raise its size."
            raise ConfigError(msg)
        first = (self.step * self.num_rounds + self.round) * batch_size
        return np.arange(first + self.rank, first + batch_size, self.num_processes, dtype=np.int64)

    def rows(self, positions: npt.NDArray[np.int64], num_examples: int) -> list[int]:
        """
        Which examples stand at these positions.

        :param positions: From `positions`.
        :param num_examples: Size of the training set.
        """
        epochs, places = np.divmod(positions, num_examples)
        return [int(_order(self.seed, int(e), num_examples)[p]) for e, p in zip(epochs, places, strict=True)]

    def generator(self, position: int, purpose: int = 0) -> np.random.Generator:
        """
        Return the source of everything random about the example at a position.

        :param position: From `positions`.
        :param purpose: Separates independent draws for the same example.
        """
        return np.random.default_rng((self.seed, _EXAMPLE, purpose, int(position)))

    @property
    def torch_seed(self) -> int:
        """Seed of dropout in this round and process."""
        state = np.random.SeedSequence((self.seed, _DROPOUT, self.step, self.round, self.rank)).generate_state(
            1, np.uint64
        )
        return int(state[0] >> 1)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_examples: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(num_examples)
