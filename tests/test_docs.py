"""README, docs and recipes say what is true: their commands parse, their files exist."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from linearize import pretrained, recipe
from linearize.cli import decode
from linearize.cli.main import app
from linearize.decoding import REMEDIES, SAMPLERS, generate
from linearize.decoding.remedies import options_of
from linearize.eval.suites.repetition import figures
from linearize.liger import bases, gates
from linearize.liger.spec import MIXES
from linearize.training.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Recipes of fine-tunings, and the objective that each is about.
FINETUNINGS = {"ditto": "ditto", "ditto-own": "cap", "unlikelihood": "unlikelihood"}
SCRATCH = {"embedded", "looped", "recall-teacher"}
NOT_CONVERSIONS = {"loop"} | SCRATCH | set(FINETUNINGS)  # recipes of other jobs


def commands() -> list[tuple[str, list[str]]]:
    """Every `linearize ...`, `decode ...` or `make ...` line of a code block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in {"linearize", "decode", "make"}:
                    found.append((page.name, words))
    return found


def test_pages_hold_commands() -> None:
    assert {words[0] for _, words in commands()} == {"linearize", "decode", "make"}


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda v: str(v)[:60])
def test_commands_exist_and_know_their_options(page: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    module = "linearize.cli.main" if words[0] == "linearize" else "linearize.cli.decode"
    if words[0] == "linearize":
        names = {c.name or c.callback.__name__ for c in app.registered_commands}
        assert words[1] in names
        module += f" {words[1]}"
        if words[1] == "bench":  # each has options of its own
            module += f" {words[2]}"
    ended = subprocess.run(
        [sys.executable, "-m", *module.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in words:
        if word.startswith("--"):
            assert word in ended.stdout, f"{page}: {word} is not an option of {module}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_lists_what_is_registered() -> None:
    text = (ROOT / "README.md").read_text()
    plain = re.sub(r"[\s-]", "", text).lower()
    for base in bases.BASES.values():
        assert base.name.lower() in plain, f"README does not mention {base.name}"
    names = {f"`{g}`" for g in gates.GATES}
    for name in names | set(MIXES) | (set(recipe.names()) - NOT_CONVERSIONS) | set(FINETUNINGS):
        assert name in text, f"README does not mention {name}"


@pytest.mark.parametrize("name", sorted(set(recipe.names()) - NOT_CONVERSIONS))
def test_recipes_build_and_are_explained(name: str) -> None:
    built = recipe.load(name)
    built.liger.spec()
    assert set(built.training.objective) <= set(OBJECTIVES)
    explained(name)


@pytest.mark.parametrize("name", sorted(FINETUNINGS))
def test_recipes_of_finetunings_build_and_are_explained(name: str) -> None:
    built = recipe.load(name, kind=recipe.FinetuneRecipe)
    assert FINETUNINGS[name] in built.training.objective
    assert set(built.training.objective) <= set(OBJECTIVES)
    explained(name)


def test_the_recipe_of_retrofits_builds_and_is_explained() -> None:
    assert recipe.load("loop", kind=recipe.LoopRecipe).spec().layers == 16
    explained("loop")


DECODING = (ROOT / "docs" / "decoding.md").read_text()


@pytest.mark.parametrize("name", REMEDIES)
def test_every_option_of_a_remedy_is_in_the_table_with_its_default(name: str) -> None:
    rows = DECODING.partition(f"| `{name}` |")[2]
    told = dict(re.findall(r"\| `(\w+)` \| (.*) \|", rows.split("\n| `", 1)[0]))
    assert list(told) == list(options_of(name))
    for option, default in options_of(name).items():
        if option != "breakers":  # marks that would break the table
            assert told[option] == str(default)


def test_every_sampler_is_named() -> None:
    assert all(f"`{name}`" in DECODING for name in SAMPLERS)


@pytest.mark.parametrize("name", ["greedy", "sample", "beam"])
def test_every_option_of_a_sampler_is_in_the_table_with_its_default(name: str) -> None:
    row = re.search(rf"^\| `{name}`.*$", DECODING, re.MULTILINE)[0]
    for option in inspect.signature(SAMPLERS[name]).parameters.values():
        assert f"`{option.name}` {option.default}" in row


def test_every_flag_of_decode_is_listed() -> None:
    listed = DECODING.partition("### All flags")[2].partition("\n## ")[0]
    flags = {o for p in typer.main.get_command(decode.app).params for o in p.opts}
    assert set(re.findall(r"`(--[\w-]+)`", listed)) == {f for f in flags if f.startswith("--")}


def test_every_figure_of_the_suite_is_defined() -> None:
    record = {"text": "a", "ids": [1], "finish_reason": "eos", "seconds": 1.0}
    found = figures(["b = "], [record], "python")
    defined = DECODING.partition("| figure |")[2].partition("\n\n")[0]
    for name in [*found, "changed"]:
        assert f"`{name}`" in defined


def test_the_example_in_contributing_works() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    path = pretrained.locate("embedded")
    model, tokenizer = pretrained.load(path), pretrained.tokenizer(path)
    try:
        exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {"__name__": "example"})
        plain, same, calm = (
            generate(model, tokenizer, "x = 1\n", max_new_tokens=24, **way)[0].ids
            for way in (
                {},
                {"sampler": "lookup", "tokens": 3},
                {"remedies": {"no-stutter": {"strength": 100.0}}},
            )
        )
    finally:
        SAMPLERS.pop("lookup", None)
        REMEDIES.pop("no-stutter", None)
    assert same == plain
    assert all(a != b for a, b in pairwise(calm))


def explained(name: str) -> None:
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith("# "), "a recipe begins with what it is for"
    assert isinstance(yaml.safe_load(text), dict)


def test_readme_names_the_test_command_that_ci_runs() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
