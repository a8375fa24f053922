"""Exchange between training processes; nothing happens when there is only one."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from gr_components.errors import ConfigError

# Processes that wait for mining, teaching or validation, which the first one does alone, may wait so long. Collectives
# of the training group itself keep their timeouts (NCCL's 10 minutes), so that a process that hangs is noticed.
_PATIENCE = timedelta(days=14)


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the first process run a block, such as one that writes files, before the others enter it."""
    group = _waiting_group(dist.group.WORLD) if num_processes() > 1 else None
    if rank() > 0:
        dist.barrier(group)
    yield
    if group is not None and rank() == 0:
        dist.barrier(group)


def wait_for_main() -> None:
    """Wait, for as long as it takes, until every process is here: the first one comes from work of its own."""
    if num_processes() > 1:
        dist.barrier(_waiting_group(dist.group.WORLD))


def start(device: str | None) -> None:
    """
    Join the other processes, if `accelerate launch` or `torchrun` started several.

    :param device: `cpu`, or None for the best one there is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


def gathered(tensor: Tensor) -> Tensor:
    """
    Concatenate the tensors of all processes along the first dimension; gradients flow back to each process's own.

    :param tensor: The same shape everywhere.
    """
    if num_processes() == 1:
        return tensor
    if tensor.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(tensor)))
    parts = [torch.empty_like(tensor) for _ in range(num_processes())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def check_divisible(batch_size: int, name: str) -> None:
    """
    Make sure that every process gets the same number of examples, as `gathered` needs.

    :param batch_size: Examples of one round over all processes.
    :param name: The setting, for the message.
    :raises ConfigError: If it is not a multiple of the number of processes.
    """
    if batch_size % num_processes():
        msg = f"{name} must be a multiple of the {num_processes()} processes, got {batch_size}."
        raise ConfigError(msg)


def check_shared(batch_size: int, name: str) -> None:
    """
    Make sure that every process gets an example.

    :param batch_size: Examples of one round over all processes.
    :param name: The setting, for the message.
    :raises ConfigError: If there are fewer than processes.
    """
    if batch_size < num_processes():
        msg = f"{name} is {batch_size}, fewer than the {num_processes()} processes. Raise it, or start fewer processes."
        raise ConfigError(msg)


@lru_cache(maxsize=1)
def _waiting_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """
    Return a group of all processes whose barriers are patient; on CPUs, since those of NCCL occupy the device.

    :param world: The group of all processes, in which all make this one together.
    """
    group = dist.new_group(dist.get_process_group_ranks(world), timeout=_PATIENCE, backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # this process is one of them
    return group
