"""What a run tells meanwhile: a bar for people, JSONL for programs, TensorBoard if installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..errors import OutputError

METRICS = "metrics.jsonl"
_PROCESS = psutil.Process()


class Reporter:
    """Context manager that takes one record per logged step; a silent one does nothing.

    Args:
        run_dir: gets `metrics.jsonl` and, if TensorBoard is installed, `tensorboard/`.
        kept: records of earlier steps that stay in `metrics.jsonl`; the rest of it goes.
        steps: how many there will be.
        silent: True in all processes but the first.
    """

    def __init__(
        self, run_dir: Path, kept: list[dict[str, Any]], *, steps: int, silent: bool = False
    ) -> None:
        self._path = run_dir / METRICS
        self._kept = kept
        self._done = max((record["step"] for record in kept), default=0)
        self._steps = steps
        self._silent = silent
        self._open = ExitStack()
        self._board: Any = None
        self._bar: Bar | None = None

    def __enter__(self) -> Reporter:
        if self._silent:
            return self
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Rewritten beside and renamed: a kill in between must not lose what is there.
            partial = self._path.with_suffix(".partial")
            partial.write_text("".join(map(_line, self._kept)), encoding="utf-8")
            os.replace(partial, self._path)
            file = self._path.open("a", buffering=1, encoding="utf-8")
            self._file = self._open.enter_context(file)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                str(self._path.parent / "tensorboard"), purge_step=self._done + 1
            )
            self._open.callback(self._board.close)
        if sys.stderr.isatty():
            self._bar = self._open.enter_context(
                Bar(
                    BarColumn(),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[status]}"),
                    TimeRemainingColumn(),
                    console=Console(stderr=True),
                    refresh_per_second=4,
                )
            )
            self._bar.add_task("", total=self._steps, completed=self._done, status="")
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def write(self, record: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`, and the same on the bar and the board."""
        if self._silent:
            return
        try:
            self._file.write(_line(record))
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        if self._board is not None:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, record["step"])
        if self._bar is not None and "loss" in record:
            status = (
                f"loss {record['loss']:.4f}  {record['tokens_per_second']:,.0f} tokens/s  "
                f"{record['memory_bytes'] / 2**30:.2f} GiB"
            )
            self._bar.update(self._bar.task_ids[0], completed=record["step"], status=status)


def read(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Records of a `metrics.jsonl` up to `last_step`, without a line that a kill cut short."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if last_step is None or record["step"] <= last_step:
            records.append(record)
    return records


def memory(device: torch.device) -> int:
    """Bytes in use: the device's peak on CUDA, its allocation on MPS, the process's RSS on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return _PROCESS.memory_info().rss


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
