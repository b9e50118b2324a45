"""One loop for every job: trains what requires grad, stops and resumes without a trace.

- A step is a pure function of its number: rows come from `row_at`, random generators are seeded
  from it. Resuming needs weights, AdamW moments and a counter.
- The rows of a step do not depend on how many processes share them, so a run may go on with more
  or fewer. Each takes a stretch of them, and gradients are summed.
- The loss of a step is the mean over all its target tokens: micro-batches of all processes are
  weighted by their share of targets, so rows cut short by documents do not weigh more.
- One device synchronisation per step: loss and gradient norm are looked at before the weights
  change, so a NaN never reaches them.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..errors import (
    CheckError,
    InputError,
    Interrupted,
    OutputError,
    ProcessLost,
    UsageError,
)
from ..recipe import RecurrenceSettings, TrainingSettings
from . import checkpoint, objectives, processes
from .checkpoint import Progress
from .devices import prepared
from .interrupt import StopRequest
from .optimizer import adamw, set_rate, share_of_rate, steps_of
from .own_rows import OwnRows
from .packing import Rows, row_at
from .progress import METRICS, Reporter, memory, read
from .pseudo_repetition import RepeatedRows, repeats
from .recurrence import recurrences
from .sharding import check, is_sharded, sharded, whole

OnStep = Callable[[dict[str, Any]], None]
Evaluate = Callable[[nn.Module], float]

# These may change between a run and its continuation; everything else must be the same.
_FREE = {"checkpoint_every", "eval_every", "log_every"}
_FREE |= {"device", "gradient_checkpointing", "shard"}


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
    repeated: RepeatedRows | OwnRows | None = None,
    recurrence: RecurrenceSettings | None = None,
    teacher: objectives.Teacher | None = None,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train every parameter that requires grad, in place, until the token budget is used up.

    Args:
        model: a causal LM of transformers, plain or wrapped by peft. It is moved to the device
            and left in training mode. Trained parameters should be float32.
        rows: packed rows.
        settings: see `TrainingSettings`; `tokens: 0` means no steps.
        run_dir: gets `metrics.jsonl`, `checkpoints/` and, if installed, `tensorboard/`.
        repeated: rows for `ditto` or `cap`, on which a share of the steps is spent instead; that
            step minimises the objectives for repeated rows, and none of the others. `OwnRows` are
            written by the model on the way.
        recurrence: for a looped model, how often its core is applied; None leaves it to the model.
        teacher: context manager under which `model` is its own teacher, for `distill`.
        evaluate: held-out loss of the model in nats per token; called before the first step,
            every `eval_every` steps and after the last.
        resume: continue from the newest checkpoint in `run_dir`, if there is one.
        on_step: called with the metrics of every logged step, in the main process.

    Raises:
        UsageError: unknown objective, no rows, nothing to train, no such device, or rows that
            the processes cannot share evenly.
        InputError: the checkpoint is damaged or belongs to another run, or processes of this run
            were given different text or settings.
        CheckError: loss or gradient norm became NaN or infinite; the last checkpoint is good.
        OutputError: `run_dir` cannot be written, or holds a run and `resume` is off.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
        ProcessLost: another process of this run died; the last checkpoint is good.
    """
    objectives.check(settings.objective, share=repeated.settings.share if repeated else 0.0)
    if objectives.needs_repeats(settings.objective) != (repeated is not None):
        raise UsageError(
            "objectives of repeated rows and such rows belong together: give both, or neither"
        )
    check(settings, looped=recurrence is not None, writes=isinstance(repeated, OwnRows))
    with prepared(model, settings) as accelerator, sharded(model, asked=settings.shard):
        held = processes.from_main(checkpoint.latest(run_dir))
        if held and not resume:
            raise OutputError(
                f"{run_dir} already holds a run ({held.name}); continue it with --resume, "
                "or choose an empty directory"
            )
        run = _Run(accelerator, model, rows, settings, run_dir, repeated, recurrence, teacher)
        if held:
            run.restore(held)
        try:
            return run.finish(evaluate, on_step)
        except ProcessLost as lost:
            raise ProcessLost(
                f"{lost}; {run.kept()}; the same command with --resume continues"
            ) from lost


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        rows: Rows,
        settings: TrainingSettings,
        run_dir: Path,
        repeated: RepeatedRows | OwnRows | None,
        recurrence: RecurrenceSettings | None,
        teacher: objectives.Teacher | None,
    ) -> None:
        self.accelerator, self.model, self.rows = accelerator, model, rows
        self.settings, self.run_dir, self.teacher = settings, run_dir, teacher
        self.repeated, self.recurrence = repeated, recurrence
        self.steps, self.step_tokens = steps_of(settings, seq_len=rows.seq_len)
        self.sharded = is_sharded(model)
        self.share = processes.share_of(settings.batch_size * settings.accumulate)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if self.steps and not len(rows):
            raise UsageError("there are no rows to train on; use more text or a smaller seq_len")
        if self.steps and not self.parameters:
            raise UsageError("no parameter requires grad, so there is nothing to train")
        self.optimizer = adamw(self.parameters, settings) if self.steps else None
        # What must stay the same between a run and its continuation.
        self.identity = settings.model_dump(mode="json", exclude=_FREE) | {
            "seq_len": rows.seq_len,
            "boundaries": rows.boundaries,
            "training text (checksum)": zlib.crc32(rows.starts, zlib.crc32(rows.tokens)),
            **(repeated.identity if repeated else {}),
            **({"recurrence": recurrence.model_dump(mode="json")} if recurrence else {}),
        }
        self.progress = Progress()
        if processes.from_main(self.identity) != self.identity:
            raise InputError(
                f"process {processes.rank()} was given other text or settings than process 0; "
                "give every machine the same command and the same files"
            )

    def restore(self, path: Path) -> None:
        """Go to where a checkpoint left off."""
        self.progress, extra, more = checkpoint.load(
            path, parameters=self.parameters, optimizer=self.optimizer, settings=self.identity
        )
        if isinstance(self.repeated, OwnRows):
            self.repeated.restore(more)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(extra["scaler"])

    def finish(self, evaluate: Evaluate | None, on_step: OnStep | None) -> TrainResult:
        """All remaining steps."""
        settings, accelerator = self.settings, self.accelerator
        done, losses = self.progress.step, list(self.progress.losses)
        began = time.perf_counter() - self.progress.seconds
        kept = read(self.run_dir / METRICS, done) if done else []
        # Of the main process: all must agree on when to evaluate.
        evaluated = processes.from_main({r["step"] for r in kept if "eval_loss" in r})
        main = processes.is_main()
        logged, spent = done, 0.0

        def measure(step: int) -> None:
            if evaluate is None or step in evaluated:
                return
            loss = evaluate(self.model)
            if not math.isfinite(loss):
                raise self._failed(f"held-out loss became {loss}", step)
            tokens = step * self.step_tokens
            reporter.write({"step": step, "tokens": tokens, "eval_loss": loss})

        with Reporter(self.run_dir, kept, steps=self.steps, silent=not main) as reporter:
            if not done:
                measure(0)
            with StopRequest() as stop:
                for step in range(done + 1, self.steps + 1):
                    before = time.perf_counter()
                    record = self._step(step)
                    now = time.perf_counter()
                    spent += now - before  # without evaluation, checkpoints and callbacks
                    losses.append(record["loss"])
                    last = step == self.steps
                    if last or step % settings.log_every == 0:
                        speed = (step - logged) * self.step_tokens / spent
                        record |= {"tokens_per_second": speed, "seconds": now - began}
                        record["memory_bytes"] = memory(accelerator.device)
                        reporter.write(record)
                        if on_step is not None and main:
                            on_step(record)
                        logged, spent = step, 0.0
                    if last or (settings.eval_every and step % settings.eval_every == 0):
                        measure(step)
                    asked = self._any(bool(stop))
                    if asked or last or step % settings.checkpoint_every == 0:
                        self._save(step, time.perf_counter() - began, losses)
                    if asked:
                        raise Interrupted(
                            f"interrupted after {step} of {self.steps} steps; they are saved in "
                            f"{self.run_dir}; the same command with --resume continues"
                        )
        seconds = time.perf_counter() - began
        return TrainResult(self.steps, self.steps * self.step_tokens, seconds, losses)

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; what `metrics.jsonl` says about it."""
        accelerator, settings = self.accelerator, self.settings
        share = share_of_rate(step - 1, self.steps, settings)
        set_rate(self.optimizer, share)

        rows = self._rows(step)
        firsts = self.share[:: settings.batch_size]
        batches = [self._batch(rows, step, first) for first in firsts]
        counts = torch.stack([objectives.terms(batch) for batch in batches])
        weights = counts / processes.summed(counts.sum()).clamp(min=1)
        sums: dict[str, Tensor] = {}
        depth = None
        if self.recurrence is not None:
            depth = recurrences(step, self.steps, self.recurrence, seed=settings.seed)
        for first, batch, weight in zip(firsts, batches, weights, strict=True):
            self._seed("forward", step, first)
            with processes.connected():
                found = self._backward(batch, weight, depth)
            sums = {name: sums.get(name, 0) + value for name, value in found.items()}
        self._sum_gradients()
        if accelerator.scaler is not None:
            accelerator.scaler.unscale_(self.optimizer)
        norm = whole(clip_grad_norm_(self.parameters.values(), settings.clip))

        means = processes.summed(torch.stack(list(sums.values())).float())
        *means, norm = torch.cat([means, norm.float()[None]]).tolist()
        values = dict(zip(sums, means, strict=True))
        self._refuse_nan(step, values["loss"], norm)
        if accelerator.scaler is None:
            self.optimizer.step()
        else:
            accelerator.scaler.step(self.optimizer)  # leaves out steps where float16 overflowed
            accelerator.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        rate = share * settings.learning_rate
        record = {"step": step, "tokens": step * self.step_tokens, **values}
        if depth is not None:
            record["recurrences"] = sum(depth)
        return record | {"lr": rate, "grad_norm": norm}

    def _backward(
        self, batch: dict[str, Tensor], weight: Tensor, depth: tuple[int, int] | None
    ) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch: weighted loss and objectives, detached."""
        with self.accelerator.autocast():
            forward = objectives.Forward(
                self.model,
                batch,
                teacher=self.teacher,
                repetition=self.repeated and self.repeated.settings,
                num_steps=depth,
            )
            loss, values = objectives.total(forward, self.settings.objective)
        del forward  # the teacher's logits: what backward needs, it holds itself
        loss = loss * weight
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        return {"loss": loss.detach()} | {name: value * weight for name, value in values.items()}

    def _rows(self, step: int) -> Rows | RepeatedRows | OwnRows:
        """What a step trains on, the same in every process and micro-batch."""
        if not self._repeats(step):
            return self.rows
        if isinstance(self.repeated, OwnRows) and (steps := self.repeated.due(step)):
            all_rows = range(self.settings.batch_size * self.settings.accumulate)
            used = [s for s in steps if s <= self.steps and self._repeats(s)]
            starts = [i for s in used for i in self._order(self.repeated, s, all_rows)]
            with self.accelerator.autocast():
                self.repeated.write(step, starts, self.model)
        return self.repeated

    def _repeats(self, step: int) -> bool:
        of = self.repeated
        return of is not None and repeats(step, seed=self.settings.seed, share=of.settings.share)

    def _order(self, rows: Rows | RepeatedRows | OwnRows, step: int, places: range) -> list[int]:
        """Indices of some of a step's rows, which are numbered from 0."""
        before = (step - 1) * self.settings.batch_size * self.settings.accumulate
        return [row_at(before + i, len(rows), self.settings.seed) for i in places]

    def _batch(
        self, rows: Rows | RepeatedRows | OwnRows, step: int, first: int
    ) -> dict[str, Tensor]:
        """The micro-batch that begins with row `first` of a step, on this process's device."""
        self._seed("rows", step, first)  # some rows are masked at random
        places = range(first, min(first + self.settings.batch_size, self.share.stop))
        batch = rows.batch(self._order(rows, step, places))
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _seed(self, what: str, step: int, first: int) -> None:
        """Randomness belongs to the rows, whichever process has them."""
        # A string, not seed + step: two seeds must not share a stream.
        key = f"{self.settings.seed}/{step}/{first}/{what}"
        torch.manual_seed(random.Random(key).getrandbits(63))

    def _sum_gradients(self) -> None:
        """Over all processes; what no row of any of them reached keeps none, as in one process."""
        if processes.count() == 1 or self.sharded:  # then they were summed as they came
            return
        parameters = list(self.parameters.values())
        reached = torch.tensor([float(p.grad is not None) for p in parameters])
        anywhere = processes.summed(reached).tolist()
        for parameter, by in zip(parameters, anywhere, strict=True):
            if by and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        processes.sum_(p.grad for p in parameters if p.grad is not None)

    def _refuse_nan(self, step: int, loss: float, norm: float) -> None:
        scaler = self.accelerator.scaler
        # Float16 gradients overflow now and then; the scaler skips the step and scales down.
        searching = scaler is not None and scaler.get_scale() > 1
        if not math.isfinite(loss):
            raise self._failed(f"loss became {loss}", step)
        if not math.isfinite(norm) and not searching:
            raise self._failed(f"gradient norm became {norm}", step)

    def kept(self) -> str:
        """What there is to go on from."""
        held = checkpoint.latest(self.run_dir)
        return f"the last good checkpoint is {held}" if held else "no checkpoint was due yet"

    def _failed(self, what: str, step: int) -> CheckError:
        share = share_of_rate(max(step, 1) - 1, self.steps, self.settings)
        rate = share * self.settings.learning_rate
        return CheckError(
            f"{what} in step {step} of {self.steps} at learning rate {rate:.3g}; {self.kept()}; "
            "lower training.learning_rate, or train with training.dtype=float32"
        )

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: signals reach them at different steps."""
        return processes.summed(torch.tensor(float(flag))).item() > 0

    def _save(self, step: int, seconds: float, losses: list[float]) -> None:
        scaler = self.accelerator.scaler
        checkpoint.save(
            self.run_dir,
            Progress(step, step * self.step_tokens, seconds, tuple(losses)),
            parameters=self.parameters,
            optimizer=self.optimizer,
            settings=self.identity,
            extra={} if scaler is None else {"scaler": scaler.state_dict()},
            more=self.repeated.state() if isinstance(self.repeated, OwnRows) else {},
            write=processes.is_main(),
        )
        processes.wait()
