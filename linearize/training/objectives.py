"""What training minimises. An objective is one function of a `Forward`, registered by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError, suggest
from ..recipe import RepetitionSettings
from . import ditto as ditto_loss
from .alignment import Call, recorded
from .cap import capped, copies
from .evaluate import evaluating, model_inputs
from .packing import IGNORED
from .token_sets import mask_of

Teacher = Callable[[], AbstractContextManager]

# Float32 elements of one [tokens, vocabulary] chunk: 64 MiB per intermediate.
_CHUNK_ELEMENTS = 2**24


class Forward:
    """One batch on its way through student and teacher; each runs once, when first asked for.

    Args:
        model: the student; with its `teacher()` context entered, the teacher.
        batch: tensors `[B, T]` on the model's device, as `Rows.batch` gives them.
        teacher: context manager under which `model` computes the teacher's logits.
        repetition: how a batch of repeated rows is to be penalised.
        num_steps: recurrences of a looped model; None where the model is none, or draws itself.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        *,
        teacher: Teacher | None = None,
        repetition: RepetitionSettings | None = None,
        num_steps: tuple[int, int] | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.repetition = repetition or RepetitionSettings()
        self.aligned = False  # whether the teacher's pass keeps what its attentions do
        self._teacher = teacher
        self._depth = {} if num_steps is None else {"num_steps": num_steps}

    @property
    def _read(self) -> Tensor:
        """`[B, T]`, the text itself, without masks."""
        return self.batch.get("unmasked", self.batch["input_ids"])

    @property
    def targets(self) -> Tensor:
        """`[B, T]`, the token that follows each position; -100 where none does."""
        return self.batch["targets"]

    @property
    def places(self) -> Tensor:
        """`[B, T, 1]`, all positions of the batch numbered row by row."""
        ids = self.batch["input_ids"]
        return torch.arange(ids.numel(), device=ids.device).reshape(*ids.shape, 1)

    @property
    def begins(self) -> Tensor:
        """`[B, T]`, where in its row each position's document begins."""
        ids = self.batch["input_ids"]
        columns = torch.arange(ids.shape[1], device=ids.device)
        return columns - self.batch.get("position_ids", columns.expand_as(ids))

    @cached_property
    def logits(self) -> Tensor:
        """The student's `[B, T, V]`, in the model's dtype, with gradient."""
        return self.model(**model_inputs(self.batch), **self._depth).logits

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's `[B, T, V]`: no gradient, eval mode. Raises `UsageError` without one."""
        return self._taught[0]

    @property
    def attentions(self) -> list[Call]:
        """Converted attentions in the teacher's pass, in order; `aligned` must have been set."""
        return self._taught[1]

    @cached_property
    def _taught(self) -> tuple[Tensor, list[Call]]:
        if self._teacher is None:
            raise UsageError(
                "this objective needs a teacher, and there is none; use 'next_token' alone"
            )
        inputs = model_inputs(self.batch)
        inputs.pop("prefix_lengths", None)
        recording = recorded(self.model) if self.aligned else nullcontext([])
        with torch.no_grad(), self._teacher(), evaluating(self.model), recording as calls:
            return self.model(**inputs | {"input_ids": self._read}).logits, calls


Objective = Callable[[Forward], Tensor]
OBJECTIVES: dict[str, Objective] = {}
# Objectives of repeated rows, and `repetition.origin` of those; all others are of ordinary rows.
ON_REPEATS: dict[str, str] = {}
TAUGHT: set[str] = set()  # objectives that need a teacher


def objective(
    name: str, *, on_repeats: str | None = None, taught: bool = False
) -> Callable[[Objective], Objective]:
    """Register a function `Forward -> scalar` (a mean over the batch's terms) under `name`.

    - `on_repeats`: `repetition.origin` of the repeated rows that it is for; None = ordinary rows.
    - `taught`: it needs a teacher.
    """

    def register(function: Objective) -> Objective:
        OBJECTIVES[name] = function
        if on_repeats:
            ON_REPEATS[name] = on_repeats
        if taught:
            TAUGHT.add(name)
        return function

    return register


def terms(batch: Mapping[str, Tensor]) -> Tensor:
    """How many terms the objectives of a batch are means over, a scalar."""
    if "previous" in batch:
        return ditto_loss.terms(batch["previous"])
    if "written" in batch:
        return batch["written"].sum()
    return (batch["targets"] != IGNORED).sum()


@objective("next_token")
def next_token(step: Forward) -> Tensor:
    """Cross entropy in nats per target token."""
    return token_mean(_cross_entropy, step.targets, step.logits)


@objective("distill", taught=True)
def distill(step: Forward) -> Tensor:
    """KL(teacher || student) in nats per target token (Hinton et al. 2015 at temperature 1)."""
    return token_mean(_divergence, step.targets, step.logits, step.teacher_logits)


@objective("align", taught=True)
def align(step: Forward) -> Tensor:
    """|o - t|^2 / |t|^2, the share of the teacher's attention output t that the student's o misses.

    Both are outputs of one layer's attention, its projection included, for the input that the
    teacher has there; mean over converted layers and target tokens.
    """
    counted, total = step.targets != IGNORED, step.targets.new_zeros((), dtype=torch.float32)
    for call in step.attentions:
        teacher = call.output.float()
        missed = (call.student().float() - teacher).square().sum(-1)
        share = missed / teacher.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
        total = total + share.masked_fill(~counted, 0).sum()
    if not step.attentions:
        raise UsageError(
            "objective 'align' compares converted layers with softmax attention, and this model "
            "has none; use distill or next_token"
        )
    return total / len(step.attentions) / counted.sum().clamp(min=1)


@objective("masked_prefix")
def masked_prefix(step: Forward) -> Tensor:
    """Cross entropy in nats per masked token of the prefix, each predicted in its own place.

    With `next_token` behind the prefix, the loss of JRT-RNN (Arora et al., arXiv 2407.05483,
    section 4.2): weights 1 and 0.25 there, divided by their sum in the paper, not in its code.
    """
    if "masked_targets" not in step.batch:
        raise UsageError(
            "objective 'masked_prefix' needs rows with a prefix; see training.prefix_rows"
        )
    return token_mean(_cross_entropy, step.batch["masked_targets"], step.logits)


@objective("unlikelihood")
def unlikelihood(step: Forward) -> Tensor:
    """-log(1 - p) of every earlier token of the document but the target, per target token.

    Token-level unlikelihood of Welleck et al. 2019 (arXiv 1908.04319, eq. 4, clamped as there at
    1e-5), whose loss is this beside `next_token`, both with weight 1.
    """
    ids = step.batch["input_ids"]
    places = torch.arange(ids.shape[1], device=ids.device)

    def loss(targets: Tensor, logits: Tensor, where: Tensor, begin: Tensor) -> Tensor:
        row, place = where // ids.shape[1], where % ids.shape[1]
        seen = (places <= place) & (places >= begin)  # [N, T]
        words = ids[row.squeeze(-1)]
        negative = mask_of(words, seen & (words != targets[:, None]), logits.shape[-1])
        unlikely = -(1 - logits.float().softmax(-1)).clamp(min=1e-5).log()
        counted = negative & (targets != IGNORED)[:, None]
        return torch.where(counted, unlikely, 0).sum()

    return token_mean(loss, step.targets, step.logits, step.places, step.begins[..., None])


@objective("ditto", on_repeats="text")
def ditto(step: Forward) -> Tensor:
    """Penalty on copies that are more probable than allowed, per penalised target; see `ditto`."""

    def log_probs(targets: Tensor, logits: Tensor) -> Tensor:
        return -F.cross_entropy(logits.float(), targets, reduction="none")

    previous = step.batch["previous"]
    found = torch.cat(_in_chunks(log_probs, step.targets, step.logits)).reshape(previous.shape)
    settings = step.repetition
    total = ditto_loss.loss(found, previous, penalty=settings.penalty, kind=settings.loss)
    return total / terms(step.batch).clamp(min=1)


@objective("cap", on_repeats="model", taught=True)
def cap(step: Forward) -> Tensor:
    """KL(teacher with its copies capped || student) in nats per token that the model wrote.

    A mean in which a copy that the cap would have prevented counts `repetition.emphasis` times, as
    it is what is to go; see `cap`. Micro-batches of a step count by their tokens.
    """
    if "written" not in step.batch:
        raise UsageError(
            "objective 'cap' is for rows that the model wrote; set repetition.origin=model"
        )
    settings = step.repetition
    ids, begins = step.batch["input_ids"], step.begins

    def loss(targets: Tensor, logits: Tensor, teacher_logits: Tensor, where: Tensor) -> Tensor:
        again = copies(
            ids, begins, where.squeeze(-1), n=settings.ngram, vocabulary=logits.shape[-1]
        )
        taught, lowered = capped(
            teacher_logits.float(), again, penalty=settings.penalty, certain=settings.certain
        )
        prevented = lowered.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
        weight = torch.where(prevented, settings.emphasis, 1.0).masked_fill(targets == IGNORED, 0)
        return torch.stack([(weight * _kl(logits, taught)).sum(), weight.sum()])

    targets = step.targets.masked_fill(~step.batch["written"], IGNORED)
    found = _in_chunks(loss, targets, step.logits, step.teacher_logits, step.places)
    total, weights = torch.stack(found).sum(0)
    return total / weights.clamp(min=1)


def token_mean(loss: Callable[..., Tensor], targets: Tensor, *tensors: Tensor) -> Tensor:
    """`loss(targets, *tensors)`, a sum over tokens, divided by the number of target tokens.

    Args:
        loss: maps `[N]` targets and `[N, W]` tensors to the sum over N, ignoring targets of -100.
        targets: `[B, T]`.
        tensors: each `[B, T, W]`, the first of them logits.
    """
    total = torch.stack(_in_chunks(loss, targets, *tensors)).sum()
    return total / (targets != IGNORED).sum().clamp(min=1)


def _cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """Nats, summed."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")


def _divergence(targets: Tensor, logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) in nats, summed over the targets."""
    return _kl(logits, teacher_logits).masked_fill(targets == IGNORED, 0).sum()


def _kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) in nats, `[N]`."""
    student = F.log_softmax(logits.float(), -1)
    teacher = F.log_softmax(teacher_logits.float(), -1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def _in_chunks(
    function: Callable[..., Tensor], targets: Tensor, *tensors: Tensor
) -> Sequence[Tensor]:
    """`function` of all tokens, in chunks where the vocabulary is large.

    Each chunk is recomputed in the backward pass, so that float32 copies of the logits exist for
    one at a time only.
    """
    flat = [targets.reshape(-1), *(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors)]
    size = max(1, _CHUNK_ELEMENTS // tensors[0].shape[-1])
    if len(flat[0]) <= size:
        return [function(*flat)]
    # split, not slicing: its backward joins the chunks once instead of once per chunk.
    chunks = zip(*(tensor.split(size) for tensor in flat), strict=True)
    return [
        checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]


def check(weights: Mapping[str, float], *, share: float = 0.0) -> None:
    """Raises `UsageError` for an unknown objective, or when steps of one kind have none.

    `share`: of steps on repeated rows, where there are such rows.
    """
    if not weights:
        raise UsageError(f"training.objective is empty; known: {', '.join(sorted(OBJECTIVES))}")
    for name in weights:
        if name not in OBJECTIVES:
            raise UsageError(f"unknown objective '{name}'{suggest(name, OBJECTIVES)}")
    if share < 1 and ON_REPEATS.keys() >= weights.keys():
        raise UsageError(
            f"objective '{next(iter(weights))}' is for repeated rows only, and a share of "
            f"{1 - share:g} of the steps sees ordinary ones; add next_token, or set "
            "repetition.share=1"
        )


def needs_repeats(weights: Mapping[str, float]) -> bool:
    """Whether some objective is for repeated rows."""
    return not ON_REPEATS.keys().isdisjoint(weights)


def needs_teacher(weights: Mapping[str, float]) -> str | None:
    """The first objective that needs a teacher, if one does."""
    return next((name for name in weights if name in TAUGHT), None)


def total(step: Forward, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum to minimise, and each objective's own value (detached scalars).

    Of `weights` only the objectives for rows of the batch's kind count.
    """
    check(weights, share=1.0)
    step.aligned = "align" in weights
    repeated = not {"previous", "written"}.isdisjoint(step.batch)
    values = {name: OBJECTIVES[name](step) for name in weights if (name in ON_REPEATS) == repeated}
    loss = torch.stack([weights[name] * value for name, value in values.items()]).sum()
    return loss, {name: value.detach() for name, value in values.items()}
