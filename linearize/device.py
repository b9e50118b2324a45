"""Which device a name means, and what that device is."""

from __future__ import annotations

import os
import platform

import torch

from .errors import UsageError


def pick(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is the accelerator if there is one, else the CPU.

    Raises `UsageError` for a name that torch does not know or a device that is not here.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return here or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name!r} is not a device; use auto, cpu, cuda or mps") from error
    count = torch.accelerator.device_count() if here else 0
    if device.type == "cpu" or (here and device.type == here.type and (device.index or 0) < count):
        return device
    found = f"cpu and {count} of type {here.type}" if here else "cpu only"
    raise UsageError(f"device={name!r} is not available here ({found}); use auto")


def dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to compute in: `name`, or for `auto` that of the checkpoint.

    On the CPU `auto` computes half-precision checkpoints in float32: few processors multiply
    bfloat16 matrices at more than a tenth of the speed (docs/speed.md).
    """
    if name != "auto":
        return getattr(torch, name)
    return torch.float32 if device.type == "cpu" and stored.itemsize < 4 else stored


def memory(device: torch.device) -> int:
    """Bytes of memory the device has; for cpu and mps those of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"
