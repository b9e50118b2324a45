"""The job: load any causal LM -> train on text -> merge -> verify -> save.

Losses, and what the caller measures, are taken before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import PeftModel
from torch import nn

from . import card, job
from . import plan as plans
from .job import Job, Result
from .recipe import FinetuneRecipe
from .training import processes
from .training.evaluate import evaluating

# (model, tokenizer) -> what is to be compared before and after, by name.
Measure = Callable[[Any, Any], dict[str, float]]


def finetune(
    recipe: FinetuneRecipe,
    *,
    measure: Measure | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Result:
    """Fine-tune a causal LM of transformers, converted ones included, as the recipe says.

    Args:
        recipe: with `base`, `out` and `data.source` set; see `linearize.recipe.FinetuneRecipe`.
        measure: called with model (in eval mode) and tokenizer before and after; the numbers go
            into the result beside the held-out losses.
        resume: continue the run that was interrupted in this `out`.
        overwrite: replace an earlier result in `out`.

    Raises:
        UsageError, InputError, OutputError: before anything heavy happens, naming what is wrong.
        CheckError: the loss became NaN, or the saved model differs from the trained one.
        Interrupted: by Ctrl-C or SIGTERM; `resume` continues.
    """
    job.need_out(recipe)
    plan = plans.finetuning(recipe, resume=resume, overwrite=overwrite)

    def start(*arguments: Any) -> _Finetuning:
        return _Finetuning(*arguments, measure=measure)

    return job.run(start, recipe, plan, resume=resume, overwrite=overwrite)


class _Finetuning(Job):
    """One fine-tuning into `path`."""

    recipe: FinetuneRecipe

    def __init__(self, *arguments: Any, measure: Measure | None) -> None:
        super().__init__(*arguments)
        self._measure = measure

    def run(self) -> dict[str, Any]:
        """All steps; returns what `result.json` holds."""
        model = self.load()
        losses, measured = {"before": job.mean(self.losses(model))}, {}
        self._measured(model, measured, "before")
        trained, parameters = self.adapted(model)
        teacher = trained.disable_adapter if isinstance(trained, PeftModel) else None
        done = self.train(trained, self.path, teacher)
        losses["after"] = job.mean(self.losses(trained))
        if not processes.is_main():
            return {}
        model, passed = self.folded(trained)
        self._measured(model, measured, "after")
        passed += self.save(model)
        return {
            **self.summary(done, parameters),
            "total_parameters": self.plan["parameters"]["base"],
            "losses": losses,
            "measured": measured or None,
            "spec": self.config.linearize["spec"] if self._is_converted else None,
            "checks": passed,
        }

    def card(self, summary: dict[str, Any]) -> str:
        return card.finetuned_card(summary, path=self.recipe.out)

    @property
    def _is_converted(self) -> bool:
        return "spec" in (getattr(self.config, "linearize", None) or {})

    def _measured(self, model: nn.Module, into: dict[str, Any], when: str) -> None:
        if self._measure is not None and processes.is_main():
            with evaluating(model):
                into[when] = self._measure(model, self.tokenizer)
