"""Prompts of a suite: from the user's files, or the few that ship with the package.

The shipped ones were written for this project: starts of programs and of prose after which models
tend to loop. The published set, CodeRepetEval, carries no licence: bring your own copy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from linearize.decoding.repetition import languages
from linearize.errors import InputError, UsageError

BUILT_IN = "built-in"
PROSE = "prose"  # in place of a language


@dataclass(frozen=True)
class Group:
    """Prompts that are measured together; `language` of their code, None for prose."""

    name: str
    language: str | None
    prompts: list[str]


def read(
    files: Sequence[Path] = (),
    *,
    field: str = "prompt",
    language: str = "python",
    limit: int | None = None,
) -> list[Group]:
    """One group per file and language; without files, the prompts that ship with the package.

    - `.jsonl`: a prompt per line under the key `field`, and its language (or "prose") under
      `language` where it is not the one given here. Other files are prose, a prompt per line.
      Empty lines do not count.
    - `limit`: take the first so many of each group.

    Raises `InputError` for a file that cannot be read or has no prompts, or a grammar that is not
    installed; `UsageError` for an unknown language or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} is below 1; leave it out to take every prompt")
    _known(language)
    groups = []
    for file in files:
        groups += _groups(file.stem, _text(file), file.suffix == ".jsonl", field, language)
    if not files:
        text = (resources.files(__package__) / "prompts.jsonl").read_text(encoding="utf-8")
        groups = _groups(BUILT_IN, text, True, "prompt", language)
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two prompt files are called {name}; rename one")
    return [Group(g.name, g.language, g.prompts[:limit]) for g in groups]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error


def _groups(name: str, text: str, as_json: bool, field: str, language: str) -> list[Group]:
    found: dict[str | None, list[str]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        values: dict[str, Any] = {field: line, "language": PROSE}
        if as_json:
            values = _parse(f"{name}.jsonl, line {number}", line, field)
        own = values.get("language") or language
        _known(own)
        found.setdefault(None if own == PROSE else own, []).append(values[field])
    if not found:
        raise InputError(f"{name} holds no prompts; write one per line")
    several = len(found) > 1
    return [
        Group(f"{name} {of or PROSE}" if several else name, of, prompts)
        for of, prompts in found.items()
    ]


def _parse(where: str, line: str, field: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get(field), str):
        raise InputError(f"{where}: no object with text under '{field}' (choose it by --field)")
    return values


def _known(language: Any) -> None:
    if language != PROSE:
        languages.parser(language)
