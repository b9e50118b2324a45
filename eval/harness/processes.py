"""The processes of `accelerate launch`: the device of this one, and exchange between them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from linearize import device as devices

_PATIENCE = timedelta(weeks=1)  # one process may have many more tokens to generate than another


class Processes:
    """One process, or one of several that a launcher has started.

    `rank` of `count` counts from 0. With several, the launcher chooses the device.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.count = 0, 1
        self._accelerator: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator, InitProcessGroupKwargs

            self._accelerator = Accelerator(
                cpu=device == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]
            )
            self.rank = self._accelerator.process_index
            self.count = self._accelerator.num_processes
        self.device = self._accelerator.device if self._accelerator else devices.pick(device)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every process's tensor, concatenated."""
        return self._accelerator.gather(tensor) if self.count > 1 else tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Every process's object at `dst`; None elsewhere."""
        if self.count == 1:
            return [obj]
        found = [None] * self.count if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()
