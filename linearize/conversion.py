"""The job: load base -> swap attention -> fine-tune with LoRA -> merge -> verify -> save."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import card, checks, job, sensitivity
from . import plan as plans
from .job import Job, Result
from .liger import mixes, sizes
from .liger.modeling import apply, attention_mode, spec_of
from .liger.spec import LigerSpec
from .recipe import Recipe
from .training import evaluate, processes, stages
from .training.loop import TrainResult

POSITION_EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def convert(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Convert a pretrained model as the recipe says.

    Args:
        recipe: with `base`, `out` and `data.source` set; see `linearize.recipe`.
        resume: continue the run that was interrupted in this `out`.
        overwrite: replace an earlier result in `out`.

    Raises:
        UsageError, InputError, OutputError: before anything heavy happens, naming what is wrong.
        CheckError: the loss became NaN, or the saved model differs from the trained one.
        Interrupted: by Ctrl-C or SIGTERM; `resume` continues.
    """
    job.need_out(recipe)
    plan = plans.plan(recipe, resume=resume, overwrite=overwrite)
    return job.run(_Conversion, recipe, plan, resume=resume, overwrite=overwrite)


class _Conversion(Job):
    """One conversion into `path`."""

    recipe: Recipe

    def run(self) -> dict[str, Any]:
        """All steps; returns what `result.json` holds."""
        measured = {}
        if self.recipe.liger.auto:
            measured = processes.from_main(self._measured() if processes.is_main() else {})
        model = self.load()
        losses = {"teacher": self.losses(model)}
        apply(model, self.recipe.liger.spec(measured.get("kept", ())))
        spec = spec_of(model.config)
        losses["before"] = self.losses(model)
        with attention_mode(model, "window"):
            losses["window_only"] = self.losses(model)
        trained, parameters = self._swapped(model)
        done, staged = self._staged(trained, self.path)
        losses["student"] = self.losses(trained)
        passed = self._finished(trained) if processes.is_main() else []
        del model, trained
        baseline = self._baseline(spec) if self.recipe.output.baseline else None
        if not processes.is_main():
            return {}
        summary = self._summary(spec, losses, baseline, done, parameters, passed)
        summary |= {"stages": staged} if staged else {}
        return summary | ({"sensitivity": measured} if measured else {})

    def card(self, summary: dict[str, Any]) -> str:
        return card.model_card(summary, path=self.recipe.out)

    def _measured(self) -> dict[str, Any]:
        """For `keep_softmax: auto:k`: what each layer's conversion costs, and which are kept."""
        found = sensitivity.read(self.path)
        if found is None:
            settings, size = self.recipe.liger, self.recipe.training.batch_size
            swapped = apply(self.load(), settings.spec())
            found = sensitivity.measure(swapped, self.held_out, batch_size=size)
            found["kept"] = sensitivity.choose(found, settings.auto)
            sensitivity.write(self.path, found)
        return found

    def _swapped(self, model: PreTrainedModel) -> tuple[nn.Module, int]:
        """The swapped model as it is trained: adapters, and what the conversion added."""
        spec = spec_of(model.config)
        added = ["mix"] if mixes.of(spec).per_head else []
        added += ["prefix"] if spec.prefix != "none" else []
        return self.adapted(model, **({"modules_to_save": added} if added else {}))

    def _staged(self, model: nn.Module, run_dir: Path) -> tuple[TrainResult, list[dict[str, Any]]]:
        """The recipe's stages, then its main training: all they took together, and each stage.

        A stage that is done is read back from its last checkpoint.
        """
        recipe, teacher, done = self.recipe, _teacher(model), []
        for number, stage in enumerate(recipe.stages, start=1):
            settings = stages.settings_of(stage, recipe.training, number)
            with stages.only(model, stage.train):
                home = stages.directory(run_dir, number)
                done.append(self.train(model, home, teacher, settings=settings))
        main = self.train(model, run_dir, teacher)
        total = {
            name: getattr(main, name) + sum(getattr(stage, name) for stage in done)
            for name in ("steps", "tokens", "seconds")
        }
        told = [
            {"steps": x.steps, "tokens": x.tokens, "seconds": x.seconds}
            | {"loss": [x.losses[0], x.losses[-1]]}
            for x in done
        ]
        return replace(main, **total), told

    def _finished(self, trained: nn.Module) -> list[dict[str, Any]]:
        """Merge, check and save; the checks that passed."""
        model, passed = self.folded(trained)
        passed.append(checks.cached(model, self.held_out, self.device))
        return passed + self.save(model)

    def _baseline(self, spec: LigerSpec) -> Tensor:
        """Held-out losses of the window alone, trained with the same recipe and budget."""
        run_dir = self.path / "baseline"
        trained, _ = self._swapped(apply(self.load(), replace(spec, mix="window", prefix="none")))
        self._staged(trained, run_dir)
        losses = self.losses(trained)
        if processes.is_main():
            for home in stages.checkpoints(run_dir):
                shutil.rmtree(home, ignore_errors=True)
        return losses

    def _summary(
        self,
        spec: LigerSpec,
        losses: dict[str, Tensor],
        baseline: Tensor | None,
        done: TrainResult,
        trained: int,
        passed: list[dict[str, Any]],
    ) -> dict[str, Any]:
        means = {name: job.mean(values) for name, values in losses.items()}
        means["window_only_trained"] = None if baseline is None else job.mean(baseline)
        shape = sizes.Shape.of(self.config, spec)
        dtype = getattr(torch, self.plan["saved_dtype"])
        edges = [e for e in POSITION_EDGES if e < self.recipe.data.seq_len]
        edges.append(self.recipe.data.seq_len)
        compared = {name: losses[name] for name in ("teacher", "window_only", "student")}
        if baseline is not None:
            compared["window_only_trained"] = baseline
        by_position = {
            name: _finite(evaluate.loss_by_position(values, edges, rows=self.held_out))
            for name, values in compared.items()
        }
        ratio = torch.tensor(means["student"] - means["teacher"]).exp().item()
        return {
            **self.summary(done, trained),
            "spec": spec.to_dict(),
            "losses": means,
            "perplexity_ratio": ratio,
            "loss_by_position": {"edges": edges, **by_position},
            "total_parameters": self.plan["parameters"]["base"] + self.plan["parameters"]["mix"],
            "state_bytes": sizes.state_bytes(shape, spec, dtype),
            "kv_bytes_per_token": sizes.kv_bytes_per_token(shape, dtype),
            "mix": checks.mix_weights(self.path) if mixes.of(spec).per_head else {},
            "checks": passed,
        }


def _teacher(model: nn.Module) -> Any:
    """Under which the model is its own teacher: without adapters, with the base's attention."""
    if not isinstance(model, PeftModel):
        return None

    @contextlib.contextmanager
    def teacher() -> Iterator[None]:
        frozen = [p for p in model.parameters() if not p.requires_grad]
        with model.disable_adapter(), attention_mode(model, "softmax"):
            yield
        for parameter in frozen:  # peft makes every adapter trainable when it is switched on again
            parameter.requires_grad_(False)

    return teacher


def _finite(values: list[float]) -> list[float | None]:
    """JSON has no nan: a bin without tokens is null."""
    return [None if value != value else value for value in values]
