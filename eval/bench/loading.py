"""The model of a bench."""

from __future__ import annotations

from typing import Any

import torch

from linearize import device as devices
from linearize import pretrained


def load(name: str, device: torch.device, dtype: str = "auto") -> tuple[Any, Any]:
    """Model and tokenizer; "auto" is the dtype that suits the device. Raises `InputError`."""
    path = pretrained.locate(name)
    stored = pretrained.stored_dtype(path, pretrained.read_config(path))
    chosen = devices.dtype(dtype, stored, device)
    return pretrained.load(path, dtype=chosen, device=device), pretrained.tokenizer(path)
