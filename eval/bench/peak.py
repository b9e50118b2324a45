"""The most memory in use since a moment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset() -> None:
    """Count from here."""
    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()
        return
    with suppress(OSError):
        _REFERENCES.write_text("5")  # proc(5): resets the high-water mark of resident memory


def read() -> int | None:
    """Bytes: allocated on the accelerator, else resident; None where nobody counts."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated()
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM:")), None)
