"""What every training job does: load a base, adapt and train it, fold the adapters, save it all.

Everything that went into the result is saved beside it: recipe, metrics, losses, versions.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import checks, device, pretrained
from . import recipe as recipes
from .converted import cast, merge_adapter, write_json
from .errors import UsageError
from .liger import bases
from .output import OutputDirectory
from .recipe import AnyRecipe, RecurrenceSettings, TrainingSettings
from .training import (
    answer_rows,
    data,
    evaluate,
    objectives,
    own_rows,
    packing,
    prefix_rows,
    processes,
    prompt_rows,
    pseudo_repetition,
    stages,
)
from .training.loop import TrainResult, train
from .training.objectives import Teacher

RECIPE = "recipe.yaml"
PACKAGES = ("linearize", "torch", "transformers", "peft", "accelerate")
# What may change on resume, because it changes no weight or is checked later.
_FREE = {"training", "output", "out", "trust_remote_code", "measure"}


@dataclass(frozen=True)
class Result:
    """`path`: the finished directory; `summary`: what its `result.json` holds."""

    path: Path
    summary: dict[str, Any]


class Job(ABC):
    """One job that writes into `path`; what a kind of job adds is `run` and `card`.

    Where several processes run it, all of them train and measure; the main one alone writes.
    """

    def __init__(self, recipe: AnyRecipe, plan: dict[str, Any], base: Path, path: Path) -> None:
        self.recipe, self.plan, self.base, self.path = recipe, plan, base, path
        self.device = device.pick(recipe.training.device)
        trust = recipe.trust_remote_code
        self.tokenizer = pretrained.tokenizer(base, trust)
        budget = plan["training"]["tokens"] + sum(s["tokens"] for s in plan.get("stages", ()))
        self.rows, self.held_out, self.data = packing.build_rows(
            recipe.data, self.tokenizer, budget
        )
        if recipe.data.prompt_field:
            self.rows = answer_rows.build(recipe.data, self.tokenizer, budget)
        elif prefix_rows.OBJECTIVE in recipe.training.objective:
            if recipe.encoder.prompt:
                self.rows = prompt_rows.build(recipe.data, recipe.encoder, self.tokenizer, budget)
            else:
                self.rows = prefix_rows.build(self.rows, recipe.encoder, self.tokenizer)
        self.repeated = None
        if objectives.needs_repeats(recipe.training.objective):
            rows = {"text": pseudo_repetition, "model": own_rows}[recipe.repetition.origin]
            self.repeated = rows.build(
                data.trained_on(recipe.data), recipe.data, recipe.repetition, self.tokenizer, budget
            )
        self.config = pretrained.read_config(base, trust)
        self.hash = pretrained.content_hash(base)  # once: it reads every byte of the weights

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """All steps; returns what `result.json` holds, in the main process."""

    @abstractmethod
    def card(self, summary: dict[str, Any]) -> str:
        """The model card."""

    def load(self) -> PreTrainedModel:
        """The base, in the dtype it is trained in."""
        recipe = self.recipe
        dtype = self.plan["training"]["dtype"] if recipe.lora.rank else "float32"
        torch.manual_seed(recipe.training.seed)
        return pretrained.load(
            self.base, dtype=dtype, device=self.device, trust_remote_code=recipe.trust_remote_code
        )

    def adapted(self, model: PreTrainedModel, **more: Any) -> tuple[nn.Module, int]:
        """The model as it is trained, and the number of trained parameters.

        `more`: further settings of peft's `LoraConfig`.
        """
        if self.recipe.lora.rank:
            torch.manual_seed(self.recipe.training.seed)  # the adapters' random start
            model = with_adapters(model, self.recipe, **more)
            model.peft_config["default"].base_model_name_or_path = self.recipe.base
        return model, sum(p.numel() for p in model.parameters() if p.requires_grad)

    def train(
        self,
        model: nn.Module,
        run_dir: Path,
        teacher: Teacher | None,
        recurrence: RecurrenceSettings | None = None,
        settings: TrainingSettings | None = None,
    ) -> TrainResult:
        """Train in place, resuming what `run_dir` holds; `settings`: None = the recipe's."""
        settings = settings or self.recipe.training
        return train(
            model,
            self.rows,
            settings=settings,
            run_dir=run_dir,
            repeated=self.repeated,
            recurrence=recurrence,
            teacher=teacher,
            evaluate=(lambda m: mean(self.losses(m))) if settings.eval_every else None,
            resume=True,  # OutputDirectory has settled whether there may be something to resume
        )

    def losses(self, model: nn.Module, num_steps: int | None = None) -> Tensor:
        """[N, T] held-out losses in nats, nan where there is no target; every process takes part.

        `num_steps`: recurrences of a looped model; None = the number in its config.
        """
        size = self.recipe.training.batch_size
        return evaluate.token_losses(
            model, self.held_out, batch_size=size, num_steps=num_steps, shared=True
        )

    def folded(self, trained: nn.Module) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        """The model with its adapters merged, and the checks passed.

        Saves the adapters first, where the recipe wants them saved instead of weights.
        """
        if not self.recipe.lora.rank:
            return trained, []
        probe = checks.probe(self.held_out, self.device)
        expected = checks.logits(trained, probe)
        if self.recipe.output.save == "adapter":
            trained.save_pretrained(self.path, save_embedding_layers=False)
        model = merge_adapter(trained)
        return model, [checks.merged(model, probe, expected)]

    def save(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Weights (unless an adapter was asked for), config with provenance, tokenizer; checked."""
        held = getattr(model.config, "linearize", None) or {}
        model.config.linearize = {**held, "provenance": self._provenance(held.get("provenance"))}
        cast(model, self.plan["saved_dtype"])
        self.tokenizer.save_pretrained(self.path)
        if self.recipe.output.save == "adapter":
            model.config.save_pretrained(self.path)
            return []
        model.save_pretrained(self.path)
        return [checks.saved(model, self.path, self.held_out, self.device)]

    def summary(self, done: TrainResult, trained: int) -> dict[str, Any]:
        """What `result.json` holds of every job: base, recipe, data, run, versions."""
        about = self.plan["model"]
        kept = {name: about[name] for name in ("name", "model_type", "license", "parameters")}
        return {
            "base": {**kept, "hash": self.hash},
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.data,
            "steps": done.steps,
            "tokens": done.tokens,
            "seconds": done.seconds,
            "trained_parameters": trained,
            "versions": versions(),
            "device": device.describe(self.device),
        }

    def _provenance(self, earlier: dict[str, Any] | None) -> dict[str, Any]:
        made = provenance(self.recipe, self.hash, self.plan["saved_dtype"])
        return made if earlier is None else {**made, "base_provenance": earlier}


def run(
    kind: Callable[..., Job],
    recipe: AnyRecipe,
    plan: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> Result:
    """Run a job into `recipe.out`, which appears when everything is done.

    Until then the run is in `out.partial`, and stays there once it has something to resume.
    Processes started by `torchrun` or `accelerate launch` share the work and all return the result.
    """
    base = Path(plan["model"]["path"])
    processes.join(recipe.training.device)
    processes.wait()  # until none is still making sure that `out` is free
    if not processes.is_main():
        path = processes.from_main(Path())
        kind(recipe, plan, base, path).run()
        return processes.from_main(Result(path, {}))
    output = OutputDirectory(
        recipe.out,
        resume=resume,
        overwrite=overwrite,
        needs=plan["output"]["weight_bytes"],
        sources=(base,),
    )
    with output as directory:
        path = directory.path
        try:
            same_recipe(recipe, path)
            processes.from_main(path)
            job = kind(recipe, plan, base, path)
            summary = job.run()
            write_json(path / "result.json", summary)
            (path / "README.md").write_text(job.card(summary), encoding="utf-8")
        finally:
            directory.keep |= any(home.exists() for home in stages.checkpoints(path))
        for home in stages.checkpoints(path):
            shutil.rmtree(home, ignore_errors=True)
        return processes.from_main(Result(directory.commit(), summary))


def need_out(recipe: AnyRecipe) -> None:
    """Raises `UsageError` where there is nowhere to write."""
    if recipe.out is None:
        raise UsageError("there is nowhere to write the result; set out (--out DIR)")


def with_adapters(model: PreTrainedModel, recipe: AnyRecipe, **more: Any) -> PeftModel:
    """The model with the recipe's adapters; `more`: further settings of peft's `LoraConfig`.

    Raises `ValueError`, as peft does, where the model has none of the targets.
    """
    lora = recipe.lora
    everywhere = lora.targets == ["all-linear"]  # peft knows it as a string only
    targets = bases.lora_targets(model.config.model_type, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if everywhere else targets,
        task_type="CAUSAL_LM",
        **more,
    )
    with warnings.catch_warnings():
        # GPT-2 stores weights transposed: peft sees it, does the right thing, and warns.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        return get_peft_model(model, config)


def provenance(recipe: AnyRecipe, content_hash: str, dtype: str) -> dict[str, Any]:
    """What a model's config says of how it was made: of which base, saved in which dtype."""
    return {
        "base": recipe.base,
        "revision": recipe.revision,
        "hash": content_hash,
        "recipe": recipe.model_dump(mode="json"),
        "versions": versions(),
        "dtype": dtype,
    }


def mean(losses: Tensor) -> float:
    """Nats per target token."""
    return losses.double().nanmean().item()


def same_recipe(recipe: AnyRecipe, path: Path) -> None:
    """Save the recipe; on resume refuse one that would have led somewhere else."""
    file = path / RECIPE
    if file.exists():
        held = recipes.build(recipes.read(str(file)), type(recipe))
        old = held.model_dump(mode="json", exclude=_FREE)
        new = recipe.model_dump(mode="json", exclude=_FREE)
        different = sorted(key for key in new if new[key] != old[key])
        if different:
            raise UsageError(
                f"{path} was started with another recipe (different: {', '.join(different)}); "
                "give the same, or start anew with --overwrite"
            )
    file.write_text(recipes.dump(recipe), encoding="utf-8")


def versions() -> dict[str, str]:
    """Of the packages that a result depends on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
