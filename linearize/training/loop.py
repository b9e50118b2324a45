"""One loop for every job: trains what requires grad, stops and resumes without a trace.

- A step is a pure function of its number: rows come from `row_at`, random generators are seeded
  from it. Resuming needs weights, AdamW moments and a counter.
- The loss of a step is the mean over all its target tokens: micro-batches of all processes are
  weighted by their share of targets, so rows cut short by documents do not weigh more.
- One device synchronisation per step: loss and gradient norm are looked at before the weights
  change, so a NaN never reaches them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import CheckError, Interrupted, OutputError, UsageError
from ..recipe import TrainingSettings
from . import checkpoint, objectives
from .checkpoint import Progress
from .interrupt import StopRequest
from .optimizer import adamw, set_rate, share_of_rate, steps_of
from .packing import Rows, row_at
from .progress import METRICS, Reporter, memory, read

# These may change between a run and its continuation; everything else must be the same.
_FREE = {"checkpoint_every", "eval_every", "log_every", "device", "gradient_checkpointing"}
_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class TrainResult:
    """Optimizer steps and tokens of the whole run, wall seconds, training loss of each step."""

    steps: int
    tokens: int
    seconds: float
    losses: list[float]


def train(
    model: nn.Module,
    rows: Rows,
    *,
    settings: TrainingSettings,
    run_dir: Path,
    teacher: objectives.Teacher | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train every parameter that requires grad, in place, until the token budget is used up.

    Args:
        model: a causal LM of transformers, plain or wrapped by peft. It is moved to the device
            and left in training mode. Trained parameters should be float32.
        rows: packed rows.
        settings: see `TrainingSettings`; `tokens: 0` means no steps.
        run_dir: gets `metrics.jsonl`, `checkpoints/` and, if installed, `tensorboard/`.
        teacher: context manager under which `model` is its own teacher, for `distill`.
        evaluate: held-out loss of the model in nats per token; called before the first step,
            every `eval_every` steps and after the last.
        resume: continue from the newest checkpoint in `run_dir`, if there is one.
        on_step: called with the metrics of every logged step, in the main process.

    Raises:
        UsageError: unknown objective, no rows, nothing to train, or no such device.
        InputError: the checkpoint is damaged or belongs to another run.
        CheckError: loss or gradient norm became NaN or infinite; the last checkpoint is good.
        OutputError: `run_dir` cannot be written, or holds a run and `resume` is off.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    objectives.check(settings.objective)
    if not resume and (held := checkpoint.latest(run_dir)):
        raise OutputError(
            f"{run_dir} already holds a run ({held.name}); continue it with --resume, "
            "or choose an empty directory"
        )
    with _prepared(model, settings) as accelerator:
        run = _Run(accelerator, model, rows, settings, run_dir, teacher)
        run.start(resume)
        return run.finish(evaluate, on_step)


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        rows: Rows,
        settings: TrainingSettings,
        run_dir: Path,
        teacher: objectives.Teacher | None,
    ) -> None:
        self.accelerator, self.model, self.rows = accelerator, model, rows
        self.settings, self.run_dir, self.teacher = settings, run_dir, teacher
        self.processes = accelerator.num_processes
        self.steps, self.step_tokens = steps_of(
            settings, seq_len=rows.seq_len, processes=self.processes
        )
        if self.steps and not len(rows):
            raise UsageError("there are no rows to train on; use more text or a smaller seq_len")
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if self.steps and not self.parameters:
            raise UsageError("no parameter requires grad, so there is nothing to train")
        self.student = model
        if self.steps and self.processes > 1:
            # Buffers are the same everywhere: nothing here changes them.
            self.student = DistributedDataParallel(model, broadcast_buffers=False)
        self.optimizer = adamw(self.parameters, settings) if self.parameters else None
        self.progress = Progress()
        self.began = time.perf_counter()

    def start(self, resume: bool) -> None:
        """Go to where the newest checkpoint left off, if asked to."""
        path = checkpoint.latest(self.run_dir) if resume else None
        if path is None:
            return
        self.progress, extra = checkpoint.load(
            path,
            parameters=self.parameters,
            optimizer=self.optimizer,
            settings=self._fingerprint(),
        )
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(extra["scaler"])
        self.began -= self.progress.seconds

    def finish(
        self,
        evaluate: Callable[[nn.Module], float] | None,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> TrainResult:
        """All remaining steps."""
        done, losses = self.progress.step, list(self.progress.losses)
        evaluated = {r["step"] for r in read(self.run_dir / METRICS, done) if "eval_loss" in r}
        main = self.accelerator.is_main_process
        reporter = Reporter(self.run_dir, steps=self.steps, start=done, silent=not main)

        def measure(step: int) -> None:
            if evaluate is not None and step not in evaluated:
                loss = evaluate(self.model)
                tokens = step * self.step_tokens
                reporter.write({"step": step, "tokens": tokens, "eval_loss": loss})

        self.model.train()
        logged = time.perf_counter(), done
        with reporter, StopRequest() as stop:
            if done == 0:
                measure(0)
            for step in range(done + 1, self.steps + 1):
                record, asked = self._step(step, bool(stop))
                losses.append(record["loss"])
                last = step == self.steps
                if step % self.settings.log_every == 0 or last:
                    now = time.perf_counter()
                    speed = (step - logged[1]) * self.step_tokens / max(now - logged[0], 1e-9)
                    record |= {"tokens_per_second": speed, "seconds": now - self.began}
                    record["memory_bytes"] = memory(self.accelerator.device)
                    reporter.write(record)
                    if on_step is not None and main:
                        on_step(record)
                    logged = time.perf_counter(), step
                if last or (self.settings.eval_every and step % self.settings.eval_every == 0):
                    measure(step)
                if asked or last or step % self.settings.checkpoint_every == 0:
                    self._save(step, losses)
                if asked and not last:
                    raise Interrupted(
                        f"interrupted after {step} of {self.steps} steps; everything is saved in "
                        f"{self.run_dir}; the same command with --resume continues"
                    )
        return TrainResult(
            self.steps, self.steps * self.step_tokens, time.perf_counter() - self.began, losses
        )

    def _step(self, step: int, asked: bool) -> tuple[dict[str, Any], bool]:
        """One optimizer step; its record, and whether any process was asked to stop."""
        accelerator, settings = self.accelerator, self.settings
        # Not the seed plus the step: two seeds must not share their streams.
        key = f"{settings.seed}/{step}/{accelerator.process_index}"
        torch.manual_seed(random.Random(key).getrandbits(63))
        share = share_of_rate(step - 1, self.steps, settings)
        set_rate(self.optimizer, share)
        batches = [self._batch(step, part) for part in range(settings.accumulate)]
        counts = torch.stack([(batch["targets"] != -100).sum() for batch in batches])
        everywhere = accelerator.reduce(counts.sum(), reduction="sum").clamp(min=1)
        # DDP averages gradients over processes; the mean here is over tokens.
        weights = counts * (self.processes / everywhere)
        sums: dict[str, Tensor] = {}
        for part, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            synced = part == settings.accumulate - 1
            with nullcontext() if synced else accelerator.no_sync(self.student):
                with accelerator.autocast():
                    forward = objectives.Forward(
                        self.model, batch, teacher=self.teacher, student=self.student
                    )
                    loss, values = objectives.total(forward, settings.objective)
                del forward  # the logits: backward keeps what it needs
                loss = loss * weight
                accelerator.backward(loss)
            for name, value in {"loss": loss.detach(), **values}.items():
                value = value if name == "loss" else value * weight
                sums[name] = sums[name] + value if name in sums else value
        norm = accelerator.clip_grad_norm_(self.parameters.values(), settings.clip)
        numbers = torch.stack([*sums.values(), torch.tensor(float(asked), device=norm.device)])
        numbers = accelerator.reduce(numbers.float(), reduction="mean")
        *found, stop, norm = torch.cat([numbers, norm.float()[None]]).tolist()
        values = dict(zip(sums, found, strict=True))
        self._refuse_nan(step, values["loss"], norm, share * settings.learning_rate)
        self._update()
        record = {"step": step, "tokens": step * self.step_tokens, **values}
        return record | {"lr": share * settings.learning_rate, "grad_norm": norm}, stop > 0

    def _batch(self, step: int, part: int) -> dict[str, Tensor]:
        size = self.settings.batch_size
        number = ((step - 1) * self.settings.accumulate + part) * self.processes
        first = (number + self.accelerator.process_index) * size
        order = (row_at(i, len(self.rows), self.settings.seed) for i in range(first, first + size))
        batch = self.rows.batch(list(order))
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _update(self) -> None:
        scaler = self.accelerator.scaler
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)  # leaves the step out where float16 overflowed
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _refuse_nan(self, step: int, loss: float, norm: float, rate: float) -> None:
        scaler = self.accelerator.scaler
        # Float16 gradients overflow now and then; the scaler skips the step and scales down.
        searching = scaler is not None and scaler.get_scale() > 1
        bad = [("loss", loss)] if not _finite(loss) else []
        if not _finite(norm) and not searching:
            bad.append(("gradient norm", norm))
        if bad:
            kept = checkpoint.latest(self.run_dir)
            last = f"the last good checkpoint is {kept}" if kept else "no checkpoint was due yet"
            what = " and ".join(f"{name} became {value}" for name, value in bad)
            raise CheckError(
                f"{what} in step {step} of {self.steps} at learning rate {rate:.3g}; {last}; "
                "lower training.learning_rate, or train with training.dtype=float32"
            )

    def _save(self, step: int, losses: list[float]) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            checkpoint.save(
                self.run_dir,
                Progress(
                    step, step * self.step_tokens, time.perf_counter() - self.began, tuple(losses)
                ),
                parameters=self.parameters,
                optimizer=self.optimizer,
                settings=self._fingerprint(),
                extra={} if scaler is None else {"scaler": scaler.state_dict()},
            )
        self.accelerator.wait_for_everyone()

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a continuation to be one."""
        sample = self.rows.batch([0, len(self.rows) // 2, len(self.rows) - 1])["input_ids"]
        return self.settings.model_dump(mode="json", exclude=_FREE) | {
            "processes": self.processes,
            "rows": len(self.rows),
            "seq_len": self.rows.seq_len,
            "first, middle and last row": random.Random(str(sample.tolist())).getrandbits(32),
        }


@contextmanager
def _prepared(model: nn.Module, settings: TrainingSettings) -> Iterator[Accelerator]:
    """An accelerator for these settings, with the model on its device."""
    accelerator = _accelerator(model, settings)
    model.to(accelerator.device)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    try:
        yield accelerator
    finally:
        if settings.gradient_checkpointing:
            model.disable_input_require_grads()
            model.gradient_checkpointing_disable()


def _accelerator(model: nn.Module, settings: TrainingSettings) -> Accelerator:
    """Device, processes and precision. Accelerate keeps them as process-wide state: reset first."""
    state = PartialState if PartialState._shared_state else None
    alone = state is None or PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    wanted = settings.device
    try:
        device = None if wanted == "auto" else torch.device(wanted)
        if device is not None and device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        accelerator = Accelerator(
            mixed_precision=_precision(model, settings),
            cpu=device is not None and device.type == "cpu",
        )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"cannot train with training.device={wanted}, training.dtype={settings.dtype}: {error}"
        ) from error
    if device is not None and device.type != accelerator.device.type:
        raise UsageError(
            f"training.device={wanted} is not available; this machine has {accelerator.device}"
        )
    return accelerator


def _precision(model: nn.Module, settings: TrainingSettings) -> str:
    """Accelerate's word for the autocast dtype; `auto` is the lowest among the parameters."""
    if settings.dtype != "auto":
        return _PRECISION.get(getattr(torch, settings.dtype), "no")
    held: Mapping[torch.dtype, Any] = dict.fromkeys(p.dtype for p in model.parameters())
    return next((word for dtype, word in _PRECISION.items() if dtype in held), "no")


def _finite(value: float) -> bool:
    return abs(value) != float("inf") and value == value
