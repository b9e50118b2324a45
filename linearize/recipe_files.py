"""Recipes as files: found by name or path, and built upon each other with `extends`.

    extends: liger            # or several: [llama-3-8b, liger-paper]; or files: ../ours.yaml
    training: {tokens: 1_000_000}

A recipe has what the recipes it extends have, later ones before earlier ones, and its own values
before all. Sections are joined key by key; what stands under a key is replaced as a whole.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, UsageError, suggest

EXTENDS = "extends"
_SUFFIXES = {".yaml", ".yml"}


def names() -> list[str]:
    """Names of the recipes that ship with the package."""
    files = resources.files("linearize.recipes").iterdir()
    return sorted(f.name[:-5] for f in files if f.name.endswith(".yaml"))


def read(*names_or_paths: str) -> dict[str, Any]:
    """Recipes as one plain dict, each by name or from a file; later ones count before earlier ones.

    Raises `InputError` if there is none, `UsageError` if one is not a YAML mapping or extends
    itself.
    """
    return _joined([_whole(name, ()) for name in names_or_paths])


def _whole(name: str, above: tuple[str, ...]) -> dict[str, Any]:
    """One recipe with what it extends; `above`: those that extend it."""
    text, folder = _text(name)
    if name in above:
        raise UsageError(f"recipe {name} extends itself, by way of {' and '.join(above)}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"recipe {name} is not a mapping of keys to values")
    extended = values.pop(EXTENDS, [])
    extended = [extended] if isinstance(extended, str) else extended
    if not isinstance(extended, list) or not all(isinstance(e, str) for e in extended):
        raise UsageError(
            f"recipe {name}: extends = {extended!r}; give the name or file of a recipe, or a list"
        )
    found = [_whole(_beside(e, folder), (*above, name)) for e in extended]
    return _joined([*found, values])


def _text(name_or_path: str) -> tuple[str, Path]:
    """What is written in a recipe, and the folder that its paths start from."""
    path = Path(name_or_path)
    if path.suffix in _SUFFIXES or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path.parent
        except OSError as error:
            raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
    if name_or_path in names():
        file = resources.files("linearize.recipes") / f"{name_or_path}.yaml"
        return file.read_text("utf-8"), Path()
    raise InputError(f"there is no recipe '{name_or_path}'{suggest(name_or_path, names())}")


def _beside(name: str, folder: Path) -> str:
    return str(folder / name) if Path(name).suffix in _SUFFIXES else name


def _joined(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of all, later ones before earlier ones."""
    joined: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            held = joined.get(key)
            both = isinstance(held, dict) and isinstance(value, dict)
            joined[key] = {**held, **value} if both else value
    return joined
