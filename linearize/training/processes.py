"""The processes of one run, as `torchrun` or `accelerate launch` started them, and what they share.

Every exchange between processes is here, so that one of them dying ends the others with a message
instead of a hang. In a run of one process nothing is exchanged. Only the main process writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from ..errors import ProcessLost, UsageError

Value = TypeVar("Value")

# While the main process merges, checks and saves, the others wait. That a process has died shows
# in its connections, not in this limit.
_PATIENCE = timedelta(days=1)
_SPEAK_OF_PEERS = re.compile("gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)
_BUCKET = 2**24  # elements exchanged at once: 64 MiB in float32


def join(device: str) -> None:
    """Find the other processes, if a launcher started several: over nccl on CUDA, else gloo.

    - `device`: as in `training.device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_cpu = not torch.accelerator.is_available() if device == "auto" else device == "cpu"
        with _exchange():
            PartialState(cpu=on_cpu, timeout=_PATIENCE)


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def share_of(rows: int) -> range:
    """Which of a step's rows are this process's.

    Raises `UsageError` where they cannot be shared evenly.
    """
    size, rest = divmod(rows, count())
    if rest or not size:
        raise UsageError(
            f"a step of {rows} rows (training.batch_size * training.accumulate) cannot be shared "
            f"evenly by {count()} processes; make it a multiple of them"
        )
    return range(rank() * size, (rank() + 1) * size)


def wait() -> None:
    """Until every process has come here."""
    if count() > 1:
        with _exchange():
            dist.barrier()


def from_main(value: Value) -> Value:
    """The main process's value, which must be picklable, in every process."""
    if count() == 1:
        return value
    held = [value]
    with _exchange():
        dist.broadcast_object_list(held, src=0)
    return held[0]


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, where the tensor lies."""
    if count() == 1:
        return tensor
    found = tensor.to(_device())
    with _exchange():
        dist.all_reduce(found)
    return found.to(tensor.device)


@torch.no_grad()
def sum_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors of one dtype, on the device of the run, by their sums over all processes."""
    if count() > 1:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with _exchange():
                dist.all_reduce(flat)
            for tensor, found in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(found.view_as(tensor))


@torch.no_grad()
def from_main_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, on the device of the run, by those of the main process."""
    if count() > 1:
        for tensor in tensors:
            with _exchange():
                dist.broadcast(tensor.detach(), src=0)


@contextmanager
def connected() -> Iterator[None]:
    """Around computing in which processes exchange: of its errors those of a lost connection count.

    Raises `ProcessLost` for them.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or _SPEAK_OF_PEERS.search(str(error))):
            raise
        raise _lost(error) from error


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of tensors of about `_BUCKET` elements: few messages, and no copy of everything."""
    bucket, held = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        held += tensor.numel()
        if held >= _BUCKET:
            yield bucket
            bucket, held = [], 0
    if bucket:
        yield bucket


def _device() -> torch.device:
    """Where the group exchanges tensors."""
    return PartialState().device


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and nccl: a connection was closed
        raise _lost(error) from error


def _lost(error: RuntimeError) -> ProcessLost:
    return ProcessLost(
        f"process {rank()} lost another process of this run, whose own message, or the "
        f"launcher's, says why ({str(error).splitlines()[0]})"
    )
