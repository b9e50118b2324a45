"""How far and how fast: steps from the token budget, learning rates, parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..recipe import TrainingSettings

# The learned weights of what the conversion adds, and the decay of a prefix; peft keeps trained
# copies under names of its own.
_MIX = tuple(
    f".{module}.{copy}{name}"
    for module, name in (
        ("mix", "weight"),
        ("mix", "query"),
        ("prefix", "weight"),
        ("prefix", "decay"),
    )
    for copy in ("", "modules_to_save.default.")
)


def steps_of(settings: TrainingSettings, *, seq_len: int) -> tuple[int, int]:
    """Optimizer steps that use up the budget (rounded up), and tokens per step.

    Both are those of all processes together, so they do not depend on how many there are.
    """
    tokens = settings.batch_size * settings.accumulate * seq_len
    return math.ceil(settings.tokens / tokens), tokens


def share_of_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """Learning rate of 0-based `step` as a share of its maximum: linear warmup, then schedule.

    The last step runs at `final_lr`, unless the schedule is constant.
    """
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - 1 - warmup)
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.final_lr + (1 - settings.final_lr) * left


def adamw(parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over named parameters; each group carries its `rate`, the maximum learning rate.

    Mix weights have a learning rate of their own and no weight decay; neither have vectors and
    scalars (norms, biases), which decay would only pull to zero.
    """
    mix = [p for name, p in parameters.items() if name.endswith(_MIX)]
    rest = [p for name, p in parameters.items() if not name.endswith(_MIX)]
    rate = settings.learning_rate
    groups = [
        ([p for p in rest if p.ndim > 1], rate, settings.weight_decay),
        ([p for p in rest if p.ndim <= 1], rate, 0.0),
        (mix, settings.mix_learning_rate or rate, 0.0),
    ]
    # One kernel call per group instead of a dozen per parameter; as exact, on CPU too.
    fused = all(p.device.type in {"cpu", "cuda"} for p in parameters.values())
    return torch.optim.AdamW(
        [{"params": p, "rate": r, "lr": r, "weight_decay": w} for p, r, w in groups if p],
        betas=settings.betas,
        fused=fused,
    )


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's learning rate to `share` of its maximum."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["rate"]
