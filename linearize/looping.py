"""The job: load base -> cut it -> train it with recurrences -> verify -> save."""

from __future__ import annotations

from typing import Any

from . import card, checks, job
from . import plan as plans
from .job import Job, Result
from .recipe import LoopRecipe
from .recurrent_depth.retrofit import WHOLE, retrofit
from .training import processes
from .training.evaluate import loss_by_recurrences


def loop(recipe: LoopRecipe, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Make a looped model of a pretrained one, as the recipe says (arXiv 2511.07384).

    Args:
        recipe: with `base`, `out` and `data.source` set; see `linearize.recipe.LoopRecipe`.
        resume: continue the run that was interrupted in this `out`.
        overwrite: replace an earlier result in `out`.

    Raises:
        UsageError, InputError, OutputError: before anything heavy happens, naming what is wrong.
        CheckError: the loss became NaN, or the saved model differs from the trained one.
        Interrupted: by Ctrl-C or SIGTERM; `resume` continues.
    """
    job.need_out(recipe)
    plan = plans.looping(recipe, resume=resume, overwrite=overwrite)
    return job.run(_Looping, recipe, plan, resume=resume, overwrite=overwrite)


class _Looping(Job):
    """One retrofit into `path`."""

    recipe: LoopRecipe

    def run(self) -> dict[str, Any]:
        """All steps; returns what `result.json` holds."""
        model = self.load()
        losses = {"original": job.mean(self.losses(model))}
        retrofit(model, self.recipe.spec())
        losses["pruned"] = job.mean(self.losses(model, num_steps=1))
        trained, parameters = self.adapted(model, **WHOLE)
        done = self.train(trained, self.path, None, self.recipe.recurrence)
        if not processes.is_main():
            return {}
        model, passed = self.folded(trained)
        by_recurrences = loss_by_recurrences(
            model,
            self.held_out,
            batch_size=self.recipe.training.batch_size,
            recurrences=self.recipe.measure.recurrences,
        )
        passed.append(checks.cached(model, self.held_out, self.device))
        passed += self.save(model)
        return {
            **self.summary(done, parameters),
            "total_parameters": self.plan["parameters"]["base"],
            "loop": self.plan["loop"],
            "losses": losses,
            "loss_by_recurrences": {str(r): loss for r, loss in by_recurrences.items()},
            "checks": passed,
        }

    def card(self, summary: dict[str, Any]) -> str:
        return card.looped_card(summary, path=self.recipe.out)
