"""The job: load base -> swap attention -> fine-tune with LoRA -> merge -> verify -> save.

Everything that went into the result is saved beside it: recipe, metrics, losses, versions.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import card, checks, device, pretrained
from . import plan as plans
from . import recipe as recipes
from .converted import cast, merge_adapter, write_json
from .errors import UsageError
from .liger import sizes
from .liger.modeling import apply, attention_mode, spec_of
from .liger.spec import LigerSpec
from .output import OutputDirectory
from .recipe import Recipe
from .training import checkpoint, evaluate, packing
from .training.loop import TrainResult, train

RECIPE = "recipe.yaml"
PACKAGES = ("linearize", "torch", "transformers", "peft", "accelerate")
POSITION_EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_FREE = {"training", "output", "out", "trust_remote_code"}  # may change on resume, or checked later


@dataclass(frozen=True)
class Result:
    """`path`: the finished directory; `summary`: what its `result.json` holds."""

    path: Path
    summary: dict[str, Any]


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
    if recipe.out is None:
        raise UsageError("there is nowhere to write the result; set out (--out DIR)")
    plan = plans.plan(recipe, resume=resume, overwrite=overwrite)
    if not recipe.lora.rank and "distill" in recipe.training.objective:
        raise UsageError(
            "lora.rank=0 trains the weights that objective 'distill' needs as teacher; "
            "use a rank of at least 1, or training.objective={next_token: 1}"
        )
    base = Path(plan["model"]["path"])
    output = OutputDirectory(
        recipe.out,
        resume=resume,
        overwrite=overwrite,
        needs=plan["output"]["weight_bytes"],
        sources=(base,),
    )
    with output as run:
        try:
            _same_recipe(recipe, run.path)
            summary = _Conversion(recipe, plan, base, run.path).run()
        finally:
            run.keep = run.keep or checkpoint.latest(run.path) is not None
        shutil.rmtree(checkpoint.directory(run.path), ignore_errors=True)
        return Result(run.commit(), summary)


class _Conversion:
    """One conversion into `path`."""

    def __init__(self, recipe: Recipe, plan: dict[str, Any], base: Path, path: Path) -> None:
        self.recipe, self.plan, self.base, self.path = recipe, plan, base, path
        self.device = device.pick(recipe.training.device)
        trust = recipe.trust_remote_code
        self.tokenizer = pretrained.tokenizer(base, trust)
        budget = plan["training"]["tokens"]
        self.rows, self.held_out, self.data = packing.build_rows(
            recipe.data, self.tokenizer, budget
        )
        self.config = pretrained.read_config(base, trust)
        self.hash = pretrained.content_hash(base)  # once: it reads every byte of the weights

    def run(self) -> dict[str, Any]:
        """All steps; returns what `result.json` holds."""
        recipe, spec = self.recipe, self.recipe.liger.spec()
        model = self._load()
        losses = {"teacher": self._losses(model)}
        apply(model, spec)
        losses["before"] = self._losses(model)
        with attention_mode(model, "window"):
            losses["window_only"] = self._losses(model)
        trained, parameters = self._adapted(model)
        done = self._train(trained, self.path)
        losses["student"] = self._losses(trained)
        passed = []
        if recipe.lora.rank:
            probe = checks.probe(self.held_out, self.device)
            expected = checks.logits(trained, probe)
            if recipe.output.save == "adapter":
                trained.save_pretrained(self.path, save_embedding_layers=False)
            model = merge_adapter(trained)
            passed.append(checks.merged(model, probe, expected))
        passed.append(checks.cached(model, self.held_out, self.device))
        self._save(model)
        if recipe.output.save == "merged":
            passed.append(checks.saved(model, self.path, self.held_out, self.device))
        del model, trained
        baseline = self._baseline(spec) if recipe.output.baseline else None
        summary = self._summary(spec, losses, baseline, done, parameters, passed)
        write_json(self.path / "result.json", summary)
        text = card.model_card(summary, path=recipe.out)
        (self.path / "README.md").write_text(text, encoding="utf-8")
        return summary

    def _load(self) -> PreTrainedModel:
        recipe = self.recipe
        dtype = self.plan["training"]["dtype"] if recipe.lora.rank else "float32"
        torch.manual_seed(recipe.training.seed)
        return pretrained.load(
            self.base, dtype=dtype, device=self.device, trust_remote_code=recipe.trust_remote_code
        )

    def _adapted(self, model: PreTrainedModel) -> tuple[nn.Module, int]:
        """The model as it is trained, and the number of trained parameters."""
        lora = self.recipe.lora
        if lora.rank:
            torch.manual_seed(self.recipe.training.seed)  # the adapters' random start
            mixes = {"modules_to_save": ["mix"]} if spec_of(model.config).mix == "learned" else {}
            model = get_peft_model(
                model,
                LoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=list(lora.targets),
                    task_type="CAUSAL_LM",
                    **mixes,
                ),
            )
            model.peft_config["default"].base_model_name_or_path = self.recipe.base
        return model, sum(p.numel() for p in model.parameters() if p.requires_grad)

    def _train(self, model: nn.Module, run_dir: Path) -> TrainResult:
        settings = self.recipe.training

        @contextlib.contextmanager
        def teacher() -> Iterator[None]:
            with model.disable_adapter(), attention_mode(model, "softmax"):
                yield

        return train(
            model,
            self.rows,
            settings=settings,
            run_dir=run_dir,
            teacher=teacher if isinstance(model, PeftModel) else None,
            evaluate=(lambda m: _mean(self._losses(m))) if settings.eval_every else None,
            resume=True,  # OutputDirectory has settled whether there may be something to resume
        )

    def _losses(self, model: nn.Module) -> Tensor:
        """[N, T] held-out losses in nats, nan where there is no target."""
        return evaluate.token_losses(
            model, self.held_out, batch_size=self.recipe.training.batch_size
        )

    def _save(self, model: PreTrainedModel) -> None:
        """Weights (unless an adapter was asked for), config with provenance, tokenizer, recipe."""
        model.config.linearize = {**model.config.linearize, "provenance": self._provenance(model)}
        cast(model, self.plan["saved_dtype"])
        if self.recipe.output.save == "adapter":
            model.config.save_pretrained(self.path)
        else:
            model.save_pretrained(self.path)
        self.tokenizer.save_pretrained(self.path)

    def _provenance(self, model: PreTrainedModel) -> dict[str, Any]:
        return {
            "base": self.recipe.base,
            "revision": self.recipe.revision,
            "hash": self.hash,
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": _versions(),
            "dtype": self.plan["saved_dtype"],
        }

    def _base_summary(self) -> dict[str, Any]:
        about = self.plan["model"]
        kept = {name: about[name] for name in ("name", "model_type", "license", "parameters")}
        return {**kept, "hash": self.hash}

    def _baseline(self, spec: LigerSpec) -> Tensor:
        """Held-out losses of the window alone, trained with the same recipe and budget."""
        run_dir = self.path / "baseline"
        trained, _ = self._adapted(apply(self._load(), replace(spec, mix="window")))
        self._train(trained, run_dir)
        losses = self._losses(trained)
        shutil.rmtree(checkpoint.directory(run_dir), ignore_errors=True)
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
        means = {name: _mean(values) for name, values in losses.items()}
        means["window_only_trained"] = None if baseline is None else _mean(baseline)
        shape = sizes.Shape.of(self.config, spec)
        dtype = getattr(torch, self.plan["saved_dtype"])
        edges = [e for e in POSITION_EDGES if e < self.recipe.data.seq_len]
        edges.append(self.recipe.data.seq_len)
        by_position = {
            name: _finite(evaluate.loss_by_position(values, edges, rows=self.held_out))
            for name, values in losses.items()
            if name in ("teacher", "student", "window_only")
        }
        ratio = torch.tensor(means["student"] - means["teacher"]).exp().item()
        return {
            "base": self._base_summary(),
            "spec": spec.to_dict(),
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.data,
            "losses": means,
            "perplexity_ratio": ratio,
            "loss_by_position": {"edges": edges, **by_position},
            "steps": done.steps,
            "tokens": done.tokens,
            "seconds": done.seconds,
            "trained_parameters": trained,
            "total_parameters": self.plan["parameters"]["base"] + self.plan["parameters"]["mix"],
            "state_bytes": sizes.state_bytes(shape, spec, dtype),
            "kv_bytes_per_token": sizes.kv_bytes_per_token(shape, dtype),
            "mix": checks.mix_weights(self.path) if spec.mix == "learned" else {},
            "checks": passed,
            "versions": _versions(),
            "device": device.describe(self.device),
        }


def _same_recipe(recipe: Recipe, path: Path) -> None:
    """Save the recipe; on resume refuse one that would have led somewhere else."""
    file = path / RECIPE
    if file.exists():
        old = recipes.build(recipes.read(str(file))).model_dump(mode="json", exclude=_FREE)
        new = recipe.model_dump(mode="json", exclude=_FREE)
        different = sorted(key for key in new if new[key] != old[key])
        if different:
            raise UsageError(
                f"{path} was started with another recipe (different: {', '.join(different)}); "
                "give the same, or start anew with --overwrite"
            )
    file.write_text(recipes.dump(recipe), encoding="utf-8")


def _mean(losses: Tensor) -> float:
    return losses.double().nanmean().item()


def _finite(values: list[float]) -> list[float | None]:
    """JSON has no nan: a bin without tokens is null."""
    return [None if value != value else value for value in values]


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
