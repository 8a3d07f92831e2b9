"""Several processes that are one run: who is the first of them, and what they must agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from nlhf_zoo.errors import BadInput

__all__ = ["by_first", "everyone", "first_process", "place", "started_by_lightning", "total"]

T = TypeVar("T")


_LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
"""Those that Lightning knows, in its order; without one, it starts processes itself."""


def first_process() -> bool:
    """Whether this process is the first of all nodes; known before the processes have met.

    Processes that Lightning starts itself have NODE_RANK and LOCAL_RANK in their environment.
    """
    for launcher in _LAUNCHERS:
        if launcher.detect():
            return launcher().global_rank() == 0
    own = LightningEnvironment()
    return own.node_rank() == 0 and own.local_rank() == 0


def started_by_lightning() -> bool:
    """Whether this process was started by the first of its node, which kills the run where such a one fails."""
    return LightningEnvironment().local_rank() != 0 and not any(launcher.detect() for launcher in _LAUNCHERS)


def place() -> tuple[int, int]:
    """This process's number in the run, and how many there are; (0, 1) where it is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def everyone(mine: T) -> list[T]:
    """What each process gave, on every process, in their order; a collective call."""
    _, processes = place()
    if processes == 1:
        return [mine]
    found: list[T | None] = [None] * processes
    dist.all_gather_object(found, mine)
    return found  # type: ignore[return-value]  # every place has been filled


def total(counts: Sequence[int], device: torch.device | str) -> list[int]:
    """Counts summed over all processes; a collective call."""
    _, processes = place()
    if processes == 1:
        return list(counts)
    summed = torch.tensor(counts, dtype=torch.int64, device=device)
    dist.all_reduce(summed)
    return summed.tolist()


def by_first(work: Callable[[], T]) -> T:
    """What `work` comes to on the first process, on every process; a collective call.

    Raises:
        BadInput: `work` did, on the first process; it is raised on all of them, so that none waits for another.
    """
    rank, processes = place()
    if processes == 1:
        return work()
    answer: list[tuple[T | None, str | None]] = [(None, None)]
    if rank == 0:
        try:
            answer = [(work(), None)]
        except BadInput as error:
            answer = [(None, str(error))]
    dist.broadcast_object_list(answer)
    result, fault = answer[0]
    if fault is not None:
        raise BadInput(fault)
    return result  # type: ignore[return-value]  # None only where that is what `work` came to
