"""The floors of the house: what may import what, and how long a file may be."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"linearize": 0, "decoding": 1, "eval": 2, "cli": 3}
# Inside linearize/: a room may import itself and what stands before it.
ROOMS = [
    {"allocator", "errors", "greedy", "ops", "stub", "_version"},
    {"liger", "recurrent_depth"},
    {"recipe", "recipe_files"},
    {"training", "device", "output"},
    {"card", "checks", "conversion", "converted", "figures", "finetuning", "inspection"}
    | {"job", "looping", "plan", "pretrain", "pretrained", "sensitivity"}
    | {"swapping"},
    {"_register", "__init__"},
]
SIGHT_OF_RECIPE = {"errors", "liger.spec", "recipe_files", "recurrent_depth.spec"}
# `decoding` works with any model: of linearize it may use these.
SIGHT_OF_DECODING = {"errors", "greedy", "liger.state", "recurrent_depth.interface", "decoding"}


def modules() -> Iterator[tuple[str, str, Path]]:
    """(floor, dotted name below it, file)"""
    for floor in FLOORS:
        for file in sorted((ROOT / floor).rglob("*.py")):
            yield floor, ".".join(file.relative_to(ROOT / floor).with_suffix("").parts), file


def imports(floor: str, name: str, file: Path) -> Iterator[str]:
    """Dotted names inside the published package `linearize` that a file imports."""
    inside = "" if floor == "linearize" else f"{floor}."
    package = f"{inside}{name}".split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = package[: len(package) - node.level + 1] if node.level else []
            prefix = ["linearize", *home] if node.level else []
            prefix += node.module.split(".") if node.module else []
            names = [".".join([*prefix, alias.name]) for alias in node.names]
        else:
            continue
        yield from (n.removeprefix("linearize.") for n in names if n.startswith("linearize."))


def room(name: str) -> int:
    return next(i for i, names in enumerate(ROOMS) if name in names)


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_import_only_from_below(floor: str) -> None:
    for home, name, file in modules():
        if home != floor:
            continue
        for target in imports(floor, name, file):
            other = target.split(".")[0] if target.split(".")[0] in FLOORS else "linearize"
            assert FLOORS[other] <= FLOORS[floor], f"{file} imports {target} from a floor above"


def test_rooms_import_only_from_before() -> None:
    for floor, name, file in modules():
        if floor != "linearize" or name.split(".")[0] == "embedded":
            continue
        own = name.split(".")[0]
        for target in imports(floor, name, file):
            other = target.split(".")[0]
            if other != own and any(other in names for names in ROOMS):
                assert room(other) <= room(own), f"{file} imports {target}"


def test_the_recipe_sees_only_errors_and_the_spec() -> None:
    seen = set(imports("linearize", "recipe", ROOT / "linearize" / "recipe.py"))
    assert {".".join(n.split(".")[:-1]) for n in seen} <= SIGHT_OF_RECIPE


def test_decoding_works_without_the_rest() -> None:
    for floor, name, file in modules():
        if floor == "decoding":
            for target in imports(floor, name, file):
                assert any(target == s or target.startswith(f"{s}.") for s in SIGHT_OF_DECODING), (
                    f"{file} imports {target}"
                )


def test_ops_know_nothing_of_transformers() -> None:
    for floor, name, file in modules():
        if floor == "linearize" and name.startswith("ops."):
            assert "transformers" not in file.read_text().replace("No transformers import", "")


def test_files_stay_under_400_lines() -> None:
    files = [file for *_, file in modules()] + sorted((ROOT / "tests").rglob("*.py"))
    long = {str(f): n for f in files if (n := len(f.read_text().splitlines())) >= 400}
    assert not long


def test_every_folder_of_code_is_declared_with_its_data() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inside = [f for floor in FLOORS for f in (ROOT / floor).rglob("__init__.py")]
    folders = {str(file.parent.relative_to(ROOT)).replace("/", ".") for file in inside}
    folders = {name if name.startswith("linearize") else f"linearize.{name}" for name in folders}
    assert set(declared["packages"]) == folders | {"linearize.recipes"}
    for name in declared["packages"]:
        where = ROOT / name.replace("linearize.", "", 1).replace(".", "/")
        where = where if where.is_dir() else ROOT / name.replace(".", "/")
        kinds = {f"*{f.suffix}" for f in where.iterdir() if f.is_file()} - {"*.py", "*.pyc"}
        given = {f"*{Path(g).suffix}" for g in declared["package-data"].get(name, [])}
        assert kinds <= given | {"*"}, name
