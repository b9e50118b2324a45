"""What conversions keep of their teacher: recipes, gates, mixes and objectives on one budget.

    python -m linearize.eval.fidelity MODEL --data TEXT --eval-data TEXT --out DIR [key=value ...]

Makes what is missing in DIR, one conversion after the other, and writes `results.json` and
`table.md`. The same command goes on where it was ended. `--help` has the rest.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearize import conversion, finetuning, pretrained
from linearize import recipe as recipes
from linearize.converted import write_json
from linearize.errors import LinearizeError, UsageError, suggest
from linearize.liger import gates
from linearize.liger.spec import MIXES
from linearize.training import packing
from linearize.training.evaluate import model_inputs
from linearize.training.packing import IGNORED, Rows

BEST, PAPER, TUNED = "liger", "liger-paper", "finetune"
OBJECTIVES = {
    "next_token": "{next_token: 1.0}",
    "distill": "{distill: 1.0}",
    "distill + next_token": "{distill: 1.0, next_token: 1.0}",
}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    - `recipe`: of the conversion; `TUNED` is the teacher itself, trained as the default recipe
      trains.
    - `changes`: what differs from it. `small`: whether it has the smaller of the two budgets.
    """

    name: str
    recipe: str = BEST
    changes: tuple[str, ...] = ()
    small: bool = False

    def folder(self, window: int) -> str:
        """Where it is kept; the fine-tuned teacher has no window."""
        words = (*(() if self.recipe == TUNED else (f"w{window}",)), self.name)
        kept = "".join(c if c.isalnum() else "-" for c in "-".join(words))
        return kept + "-small" * self.small


def main_rows() -> list[Row]:
    """The default recipe, and what it has to be compared with."""
    return [
        Row("teacher, fine-tuned", TUNED),
        Row("as published", PAPER, ("data.seq_len=512", "data.boundaries=true")),
        Row("window alone", BEST, ("liger.mix=window",)),
        Row("default", BEST),
    ]


def factor_rows() -> list[Row]:
    """One factor at a time around the default recipe, all on the smaller budget."""
    found = [Row("small default", small=True)]
    found += [Row(f"mix {name}", changes=(f"liger.mix={name}",), small=True) for name in MIXES]
    for name, gate in gates.GATES.items():
        mix = ("liger.mix=delayed",) * gate.signed  # what has no normaliser cannot be joint
        found.append(Row(f"gate {name}", changes=(f"liger.gate={name}", *mix), small=True))
    found += [
        Row(f"objective {name}", changes=(f"training.objective={value}",), small=True)
        for name, value in OBJECTIVES.items()
    ]
    aligned = "stages=[{tokens: 50000}]"
    found.append(Row("objective, after aligning", changes=(aligned,), small=True))
    found += [Row(f"sinks {n}", changes=(f"liger.sinks={n}",), small=True) for n in (0, 1, 4)]
    return found


def recipe_of(
    row: Row, window: int, common: Sequence[str], out: Path, tokens: int, best: str = BEST
) -> recipes.Recipe | recipes.FinetuneRecipe:
    """`common`: overrides of every row, base and texts among them; those of the row win.

    - `best`: the recipe that stands for the default.
    """
    given = [*common, f"training.tokens={tokens}", f"out={out}"]
    if row.recipe != TUNED:
        own = [f"liger.window={window}", "output.samples=0", *row.changes]
        return recipes.load(best if row.recipe == BEST else row.recipe, [*given, *own])
    like = recipes.load(best, [*given]).model_dump(mode="json")
    training = like["training"] | {"objective": {"next_token": 1.0}}
    shared = {name: like[name] for name in ("base", "out", "data", "lora")}
    return recipes.build(
        {**shared, "training": training, "measure": {"prompts": 0}}, recipes.FinetuneRecipe
    )


def make(recipe: recipes.Recipe | recipes.FinetuneRecipe) -> None:
    """Convert or fine-tune, unless it is done. Raises `UsageError` if it was done otherwise."""
    out = Path(recipe.out)
    if out.exists():
        held = recipes.build(recipes.read(str(out / "recipe.yaml")), type(recipe))
        if held != recipe:
            raise UsageError(f"{out} was made with another recipe; give another --out")
        return
    job = conversion.convert if isinstance(recipe, recipes.Recipe) else finetuning.finetune
    job(recipe, resume=True)


@torch.no_grad()
def compare(
    teacher: nn.Module, student: nn.Module, rows: Rows, window: int, *, batch_size: int = 8
) -> dict[str, float]:
    """How far a student is from its teacher on held-out rows, documents from their beginning.

    - `ratio`: of perplexities; `beyond`: the same over tokens at positions from `window` on, whose
      context no longer fits the window.
    - `kl`: KL divergence from the teacher's distribution to the student's, nats per target token.
      Unlike the ratios it does not fall when the student gets used to the text.
    - `agreement`: share of target positions at which both find the same token most probable.
    """
    sums, counts = torch.zeros(4, dtype=torch.float64), torch.zeros(2)
    for first in range(0, len(rows), batch_size):
        batch = rows.batch(range(first, min(first + batch_size, len(rows))))
        inputs = model_inputs(batch)
        targets, where = batch["targets"], batch["targets"] != IGNORED
        places = torch.arange(targets.shape[1]).expand_as(targets)
        beyond = (batch.get("position_ids", places) >= window)[where]
        t, s = (m(**inputs).logits[where].float().log_softmax(-1) for m in (teacher, student))
        worse = (t - s).gather(-1, targets[where][:, None]).squeeze(-1)
        agree = t.argmax(-1) == s.argmax(-1)
        found = (worse, worse[beyond], (t.exp() * (t - s)).sum(-1), agree)
        sums += torch.stack([x.double().sum() for x in found])
        counts += torch.tensor([len(worse), int(beyond.sum())])
    whole, far = (sums[:2] / counts).exp().tolist()
    kl, agreement = (sums[2:] / counts[0]).tolist()
    return {"ratio": whole, "beyond": far, "kl": kl, "agreement": agreement}


def run(
    jobs: Iterable[tuple[Row, int, int]],
    common: Sequence[str],
    out: Path,
    *,
    best: str = BEST,
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Make and measure what is missing of (row, window, tokens); all that `out` holds.

    Raises what `convert` and `finetune` raise; what is done by then is kept.
    """
    file = out / "results.json"
    held = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for row, window, tokens in jobs:
        folder = row.folder(window)
        recipe = recipe_of(row, window, common, out / folder, tokens, best)
        make(recipe)
        if any(one["folder"] == folder and one["window"] == window for one in held):
            continue
        base = Path(pretrained.locate(recipe.base))
        rows = packing.beginnings(recipe.data, pretrained.tokenizer(base))
        teacher, student = (pretrained.load(path).eval() for path in (base, out / folder))
        found = compare(teacher, student, rows, window)
        made = json.loads((out / folder / "result.json").read_text(encoding="utf-8"))
        held.append(
            {"folder": folder, "name": row.name, "window": window, "small": row.small}
            | {"tokens": made["tokens"], "trained_parameters": made["trained_parameters"]}
            | {"seconds": made["seconds"], **found, "recipe": made["recipe"]}
        )
        write_json(file, held)
        tell(f"{folder}: ratio {found['ratio']:.4f}, KL {found['kl']:.4f}")
    return held


def table(results: Iterable[dict[str, Any]]) -> str:
    """Markdown, by window and budget."""
    lines = [
        "| window | | tokens | ratio | beyond the window | KL | same token |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(results, key=lambda r: (r["window"], r["small"])):
        lines.append(
            f"| {one['window']} | {one['name']} | {one['tokens']:,} | {one['ratio']:.4f} "
            f"| {one['beyond']:.4f} | {one['kl']:.4f} | {one['agreement']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, as listed in `linearize.errors`."""
    parser = argparse.ArgumentParser(
        prog="python -m linearize.eval.fidelity", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model", help="what to convert: a directory, a hub id or `embedded`")
    parser.add_argument("overrides", nargs="*", help="key=value, of every conversion")
    parser.add_argument("--data", required=True, help="text to train on")
    parser.add_argument("--eval-data", help="held-out text; else a share of the other")
    parser.add_argument("--out", type=Path, required=True, help="directory for everything")
    parser.add_argument("--recipe", default=BEST, help=f"what is default; {BEST} unless given")
    parser.add_argument("--window", type=int, action="append", help="may be repeated: 16 and 64")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of the main rows")
    parser.add_argument("--small-tokens", type=int, default=200_000, help="of the others")
    parser.add_argument("--only", action="append", help="a row by its name; may be repeated")
    options = parser.parse_intermixed_args(arguments)
    rows = [*main_rows(), *factor_rows()]
    names = {row.name for row in rows}
    given = {"base": options.model, "data.source": options.data}
    given |= {"data.eval_source": options.eval_data} if options.eval_data else {}
    common = [*(f"{key}={value}" for key, value in given.items()), *options.overrides]
    try:
        for name in options.only or ():
            if name not in names:
                raise UsageError(f"there is no row '{name}'{suggest(name, names, most=len(names))}")
        jobs = [
            (row, window, options.small_tokens if row.small else options.tokens)
            for window in options.window or (16, 64)
            for row in rows
            if options.only is None or row.name in options.only
        ]
        options.out.mkdir(parents=True, exist_ok=True)
        tell = functools.partial(print, file=sys.stderr, flush=True)
        found = run(jobs, common, options.out, best=options.recipe, tell=tell)
    except LinearizeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    (options.out / "table.md").write_text(table(found), encoding="utf-8")
    print(table(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
