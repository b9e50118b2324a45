"""What training minimises. An objective is one function of a `Forward`, registered by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError, suggest
from .evaluate import evaluating, model_inputs
from .packing import IGNORED

Teacher = Callable[[], AbstractContextManager]

# Float32 elements of one [tokens, vocabulary] chunk: 64 MiB per intermediate.
_CHUNK_ELEMENTS = 2**24


class Forward:
    """One batch on its way through student and teacher; each runs once, when first asked for.

    Args:
        model: the student; with its `teacher()` context entered, the teacher.
        batch: tensors `[B, T]` on the model's device, as `Rows.batch` gives them.
        teacher: context manager under which `model` computes the teacher's logits.
        student: what to call for the student's logits, if not `model` itself (a DDP wrapper).
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        teacher: Teacher | None = None,
        student: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self._teacher = teacher
        self._student = model if student is None else student

    @property
    def targets(self) -> Tensor:
        """`[B, T]`, the token that follows each position; -100 where none does."""
        return self.batch["targets"]

    @cached_property
    def logits(self) -> Tensor:
        """The student's `[B, T, V]`, in the model's dtype, with gradient."""
        return self._student(**model_inputs(self.batch)).logits

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's `[B, T, V]`: no gradient, eval mode. Raises `UsageError` without one."""
        if self._teacher is None:
            raise UsageError(
                "this objective needs a teacher, and there is none; use 'next_token' alone"
            )
        with torch.no_grad(), self._teacher(), evaluating(self.model):
            return self.model(**model_inputs(self.batch)).logits


Objective = Callable[[Forward], Tensor]
OBJECTIVES: dict[str, Objective] = {}


def objective(name: str) -> Callable[[Objective], Objective]:
    """Register a function `Forward -> scalar` (a mean over the target tokens) under `name`."""

    def register(function: Objective) -> Objective:
        OBJECTIVES[name] = function
        return function

    return register


@objective("next_token")
def next_token(step: Forward) -> Tensor:
    """Cross entropy in nats per target token."""

    def loss(targets: Tensor, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")

    return token_mean(loss, step.targets, step.logits)


@objective("distill")
def distill(step: Forward) -> Tensor:
    """KL(teacher || student) in nats per target token (Hinton et al. 2015 at temperature 1)."""

    def loss(targets: Tensor, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        student = F.log_softmax(logits.float(), -1)
        teacher = F.log_softmax(teacher_logits.float(), -1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        return divergence.masked_fill(targets == IGNORED, 0).sum()

    return token_mean(loss, step.targets, step.logits, step.teacher_logits)


def token_mean(loss: Callable[..., Tensor], targets: Tensor, *logits: Tensor) -> Tensor:
    """`loss(targets, *logits)`, a sum over tokens, divided by the number of target tokens.

    Large vocabularies go through in chunks of tokens, each recomputed in the backward pass, so
    that float32 copies of the logits exist for one chunk at a time only.

    Args:
        loss: maps `[N]` targets and `[N, V]` logits to the sum over N, ignoring targets of -100.
        targets: `[B, T]`.
        logits: each `[B, T, V]`.
    """
    flat = [targets.reshape(-1), *(tensor.reshape(-1, tensor.shape[-1]) for tensor in logits)]
    size = max(1, _CHUNK_ELEMENTS // logits[0].shape[-1])
    if len(flat[0]) <= size:
        total = loss(*flat)
    else:
        # split, not slicing: its backward joins the chunks once instead of once per chunk.
        chunks = zip(*(tensor.split(size) for tensor in flat), strict=True)
        total = sum(
            checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        )
    return total / (targets != IGNORED).sum().clamp(min=1)


def check(weights: Mapping[str, float]) -> None:
    """Raises `UsageError` for an unknown objective, or when there is none."""
    if not weights:
        raise UsageError(f"training.objective is empty; known: {', '.join(sorted(OBJECTIVES))}")
    for name in weights:
        if name not in OBJECTIVES:
            raise UsageError(f"unknown objective '{name}'{suggest(name, OBJECTIVES)}")


def total(step: Forward, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum to minimise, and each objective's own value (detached scalars)."""
    check(weights)
    values = {name: OBJECTIVES[name](step) for name in weights}
    loss = torch.stack([weights[name] * value for name, value in values.items()]).sum()
    return loss, {name: value.detach() for name, value in values.items()}
