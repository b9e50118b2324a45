"""Where training runs: device, processes and precision, as settings and launcher say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn

from ..errors import UsageError
from ..recipe import TrainingSettings
from . import processes

# Accelerate's words for autocast, lowest precision first.
_AUTOCAST = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@contextmanager
def prepared(model: nn.Module, settings: TrainingSettings) -> Iterator[Accelerator]:
    """An accelerator for these settings, with the model on its device and in training mode.

    `torchrun` (CPU over gloo, CUDA over nccl) and `accelerate launch` decide the processes.
    Accelerate's `prepare` is not used: it would patch the caller's model and make a float32 copy
    of all logits. Raises `UsageError` for a device or precision this machine does not have.
    """
    accelerator = _accelerator(model, settings)
    model.to(accelerator.device).train()
    # They start alike where seeds and files are alike; devices of two kinds draw differently.
    processes.from_main_(p for p in model.parameters() if p.requires_grad)
    if not settings.gradient_checkpointing:
        yield accelerator
        return
    # Not reentrant: needs no input that requires grad, so frozen embeddings stay frozen.
    # transformers renames the two methods in 5.23 and warns about the names it had before.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield accelerator
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()


def _accelerator(model: nn.Module, settings: TrainingSettings) -> Accelerator:
    processes.join(settings.device)
    # Accelerate keeps these choices for the whole process; a second run may choose otherwise.
    alone = not PartialState._shared_state or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    try:
        device = None if settings.device == "auto" else torch.device(settings.device)
        if device is not None and device.index is not None and processes.count() > 1:
            raise ValueError("several processes cannot share a device; leave out its number")
        if device is not None and device.index is not None and torch.cuda.is_available():
            torch.cuda.set_device(device)
        accelerator = Accelerator(
            mixed_precision=_precision(model, settings),
            # Asked for where there is nothing else, too: otherwise torchrun's processes, on a
            # machine without accelerator, do not find each other.
            cpu=not torch.accelerator.is_available() if device is None else device.type == "cpu",
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"cannot train with training.device={settings.device}, "
            f"training.dtype={settings.dtype}: {str(error).splitlines()[0]}"
        ) from error
    if device is not None and device.type != accelerator.device.type:
        raise UsageError(
            f"training.device={settings.device} is not available; here it would be "
            f"'{accelerator.device.type}' or 'cpu'"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        # Without a scaler small gradients vanish.
        raise UsageError(
            f"training.dtype=float16 needs a CUDA device, not '{accelerator.device.type}'; "
            "use bfloat16 or float32"
        )
    kind = accelerator.distributed_type
    if kind != DistributedType.NO and not kind.value.startswith("MULTI_"):
        raise UsageError(
            f"training under {kind.value} is not supported; use torchrun, which gives every "
            "process the whole model, or a part of it with training.shard=true"
        )
    return accelerator


def _precision(model: nn.Module, settings: TrainingSettings) -> str:
    """Accelerate's word for the autocast dtype; `auto` takes the lowest among the parameters."""
    if settings.dtype != "auto":
        return _AUTOCAST.get(getattr(torch, settings.dtype), "no")
    held = {parameter.dtype for parameter in model.parameters()}
    return next((word for dtype, word in _AUTOCAST.items() if dtype in held), "no")
