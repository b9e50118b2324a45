"""What `linearize paths` prints for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._print import facts, table


def show(found: dict[str, Any], file: Path) -> None:
    """What the search found, as tables; `file` holds the whole."""
    measure, original = found["measure"], found["original"]
    held = found["items"]["held_out"]
    rows = {
        "task": f"{found['task']}: {found['items']['search']} items searched, {held} held out",
        "searched": f"{found['simulations']} paths"
        + (" for each item" if found["scope"] == "item" else "")
        + f"; {found['runs']} runs in {found['seconds']:.1f} s, the rest was known",
        "the model as it is": f"{measure} {_number(original['search'])}, "
        f"{original['length']} layers",
    }
    if found["scope"] == "task":
        best = found["best"]
        own = best["path"] == original["path"]
        rows["best path"] = f"{best['path']} ({best['length']} layers)" + (
            ": no path beats the model as it is" if own else ""
        )
        rows["on its own items"] = f"{measure} {_number(best['search'])} (oracle)"
        if held:
            rows["on held-out items"] = _held_out(found)
    if "oracle" in found:
        oracle = found["oracle"]
        rows["some path is right"] = (
            f"{oracle['some_path_is_right']:.1%} of the items (oracle); guessing as often: "
            f"{oracle['guessing_as_often']:.1%}"
        )
        for name, told in {
            "shortened": "of the right answers stay right with fewer layers (oracle)",
            "corrected": "of the wrong answers are corrected by some path (oracle)",
        }.items():
            if oracle.get(name) is not None:
                rows[name] = f"{oracle[name]:.1%} {told}"
    facts(rows)
    columns = ["layers", f"{measure}, searched"]
    if found["scope"] == "task":
        columns = ["path", *columns, *([f"{measure}, held out"] if held else [])]
    table(
        "Best for its length" if found["scope"] == "task" else "Right within a length",
        columns,
        [
            [
                *([row["path"]] if "path" in row else []),
                str(row["length"]),
                _number(row["search"]),
                *([_number(row["held_out"])] if "held_out" in row else []),
            ]
            for row in found["front"]
        ],
    )
    print(found["note"])
    print(f"written: {file}")


def _held_out(found: dict[str, Any]) -> str:
    best, original, transfer = found["best"], found["original"], found["transfer"]
    unit = " nats/token" if found["measure"] == "perplexity" else ""
    told = (
        f"{found['measure']} {_number(best['held_out'])}, the model as it is "
        f"{_number(original['held_out'])}"
    )
    if transfer["standard_error"] is None:
        return told
    return (
        f"{told}; difference {transfer['difference']:+.4f}{unit} "
        f"(standard error {transfer['standard_error']:.4f})"
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
