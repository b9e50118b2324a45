"""What a report is made of: files that the commands wrote, read and told apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from linearize.errors import InputError
from linearize.training import progress

# Kind -> what a person calls it.
KINDS = {
    "conversion": "conversion",
    "retrofit": "retrofit into a looped model",
    "finetuning": "fine-tuning",
    "tasks": "evaluation on tasks",
    "repetition": "repetition suite",
    "recall": "recall demonstration",
    "bench": "bench",
}
RUNS = ("conversion", "retrofit", "finetuning")


@dataclass(frozen=True)
class Source:
    """One file of results; `metrics` and `samples` of what was trained.

    - `name`: short, and different from that of all others that were read together.
    """

    kind: str
    name: str
    path: Path
    values: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, str]] | None = None


def read(paths: Iterable[Path | str]) -> list[Source]:
    """Sources of directories and files, in order.

    Raises `InputError` naming a path that holds nothing known, or a damaged file.
    """
    found = [source for path in paths for source in _all(Path(path).expanduser())]
    names = [source.name for source in found]
    return [
        replace(source, name=str(source.path)) if names.count(source.name) > 1 else source
        for source in found
    ]


def _all(path: Path) -> Iterator[Source]:
    if path.is_file():
        yield _one(path)
        return
    if not path.is_dir():
        raise InputError(f"there is no {path}")
    known = [file for name in ("result.json", "results.json") if (file := path / name).is_file()]
    known = known or [file for file in sorted(path.glob("*.json")) if _is_bench(file)]
    if not known:
        raise InputError(
            f"{path} has no result.json, results.json or numbers of benches; give the output "
            "directory of a finished `linearize convert`, `loop`, `finetune` or `eval`, or a JSON "
            "file of `linearize bench`"
        )
    yield from map(_one, known)


def _one(file: Path) -> Source:
    values = _json(file)
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no results: it is not a JSON object")
    kind = _kind(file, values)
    # A directory has the name that was given to it; a file beside others has its own.
    name = file.parent.resolve().name if file.stem in ("result", "results") else file.stem
    if kind not in RUNS:
        return Source(kind, name, file, values)
    samples = file.parent / "samples.json"
    return Source(
        kind,
        name,
        file,
        values,
        progress.read(file.parent / progress.METRICS),
        _json(samples) if samples.exists() else None,
    )


def _kind(file: Path, values: dict[str, Any]) -> str:
    if {"bench", "records"} <= set(values):
        return "bench"
    if "suite" in values:
        return "repetition"
    if {"results", "configs"} <= set(values):
        return "tasks"
    if {"rows", "means"} <= set(values):
        return "recall"
    if "loop" in values:
        return "retrofit"
    if "measured" in values:
        return "finetuning"
    if "recipe" in values or file.name == "result.json":
        return "conversion"
    raise InputError(f"{file} is none of: {', '.join(KINDS.values())}")


def _is_bench(file: Path) -> bool:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"bench", "records"} <= set(values)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
