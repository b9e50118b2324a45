"""Recipes: how they build upon each other, and those for real models, planned without weights."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from published import PUBLISHED, write_config

from linearize import pretrained, recipe
from linearize.cli import main
from linearize.errors import InputError, UsageError
from linearize.plan import plan
from linearize.recipe_files import read

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
# The table is updated when a default changes by more than this.
CLOSE = 0.05


def planned(capsys, monkeypatch, *arguments) -> dict:
    """What `linearize convert ... --dry-run --json` prints."""
    command = ["linearize", "convert", *map(str, arguments), "--dry-run", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return json.loads(out)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("some text\n")
    return file


@pytest.mark.filterwarnings("ignore:Detected Mistral")
@pytest.mark.parametrize("added", [[], ["--recipe", "liger-paper"]], ids=["ours", "published"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_real_model_is_planned_from_its_configuration(
    name, added, tmp_path, text, capsys, monkeypatch
) -> None:
    hub, parameters, _ = PUBLISHED[name]
    where = write_config(name, tmp_path / "model")
    common = (where, "--recipe", name, *added, "--data", text, "--device", "cpu")
    found = planned(capsys, monkeypatch, *common)
    assert found["model"]["parameters"] == parameters
    assert f"{where} has only config.json" in found["notes"][0]
    assert found["training"]["dtype"] == ("float32" if name == "smollm2-135m" else "bfloat16")
    assert found["saved_dtype"] == "bfloat16"
    assert len(found["swap"]["layers"]) == PUBLISHED[name][2]["num_hidden_layers"]
    assert recipe.load(name).base == hub

    row = next(line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == hub
    memory, operations, hours = cells[5:8] if added else cells[2:5]
    told = float(memory.removesuffix(" GB")) * 1e9
    assert told == pytest.approx(found["memory_bytes"]["total"], rel=CLOSE)
    assert float(operations) == pytest.approx(found["training"]["operations"], rel=CLOSE)
    assert float(hours) == pytest.approx(float(operations) / 100e12 / 3600, rel=0.15)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_setting_is_the_same_on_every_model(name: str) -> None:
    """Nothing of the default shines through; only what the machine needs is the model's."""
    machine = {"base": True, "training": {"dtype", "gradient_checkpointing"}}
    paper, both = recipe.load("liger-paper"), recipe.load([name, "liger-paper"])
    assert both.base == PUBLISHED[name][0]
    assert both.model_dump(exclude=machine) == paper.model_dump(exclude=machine)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_real_model_takes_the_layer_and_the_objective_of_the_default(name: str) -> None:
    ours, default = recipe.load(name), recipe.load("liger")
    assert ours.liger == default.liger
    assert ours.lora == default.lora
    assert ours.training.objective == default.training.objective


def test_every_line_of_a_recipe_for_a_real_model_is_explained() -> None:
    for name in PUBLISHED:
        file = Path(__file__).parents[1] / "recipes" / f"{name}.yaml"
        for line in file.read_text().splitlines():
            if not re.fullmatch(r"\w+:", line):  # a section has its lines
                assert "#" in line, f"{file.name}: {line}"


def written(folder: Path, name: str, **values) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump(values))
    return str(folder / name)


def test_recipes_are_joined_key_by_key_and_later_ones_win(tmp_path: Path) -> None:
    written(tmp_path / "a", "one.yaml", liger={"window": 32, "mix": "fixed"}, out="x")
    written(tmp_path / "a", "two.yaml", liger={"window": 48}, lora={"rank": 4})
    last = written(
        tmp_path / "b",
        "last.yaml",
        extends=["../a/one.yaml", "../a/two.yaml"],
        lora={"alpha": 2},
        training={"objective": {"next_token": 2.0}},
    )
    assert read(last) == {
        "liger": {"window": 48, "mix": "fixed"},
        "out": "x",
        "lora": {"rank": 4, "alpha": 2},
        "training": {"objective": {"next_token": 2.0}},
    }
    over = recipe.load(["liger", last])
    assert over.training.objective == {"next_token": 2.0}, "what stands under a key is replaced"
    assert over.training.batch_size == recipe.load("liger").training.batch_size
    assert recipe.load([last, "liger"]).liger.mix == "joint"
    assert "extends" not in recipe.dump(over)


def test_recipes_that_extend_nothing_or_themselves_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "a.yaml", extends="b.yaml")
    with pytest.raises(UsageError, match=r"a\.yaml extends itself, by way of .*a\.yaml and .*b\."):
        read(written(tmp_path, "b.yaml", extends="a.yaml") and str(tmp_path / "a.yaml"))
    for wrong in (3, ["liger", 3], {"liger": 1}):
        with pytest.raises(UsageError, match="give the name or file of a recipe, or a list"):
            read(written(tmp_path, "c.yaml", extends=wrong))
    with pytest.raises(InputError, match="did you mean 'liger'"):
        read(written(tmp_path, "d.yaml", extends="ligre"))
    with pytest.raises(UsageError, match=r"unknown recipe key 'liger\.windwo'"):
        recipe.load(written(tmp_path, "e.yaml", extends="liger", liger={"windwo": 3}))


def test_a_run_and_half_a_model_need_their_weights_all_the_same(tmp_path, text) -> None:
    where = write_config("smollm2-135m", tmp_path / "model")
    asked = recipe.load("smollm2-135m", [f"base={where}", f"data.source={text}"])
    with pytest.raises(InputError, match="has no weights"):
        plan(asked)
    (where / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"the tokenizer in .* cannot be read"):
        plan(asked, dry=True)
    (where / "tokenizer.json").unlink()
    (where / pretrained.INDEX).write_text('{"weight_map": {"a": "model-00001-of-2.safetensors"}}')
    with pytest.raises(InputError, match=r"model-00001-of-2\.safetensors is missing"):
        plan(asked, dry=True)


def test_a_plan_downloads_no_weights(tmp_path, text, monkeypatch) -> None:
    wanted = []

    def snapshot(name, *, revision, allow_patterns, ignore_patterns):
        wanted.append((name, allow_patterns))
        return str(write_config("smollm2-135m", tmp_path / f"model-{len(wanted)}"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    asked = recipe.load("smollm2-135m", [f"data.source={text}"])
    plan(asked, dry=True)
    with pytest.raises(InputError, match="has no weights"):
        plan(asked)
    assert [name for name, _ in wanted] == ["HuggingFaceTB/SmolLM2-135M"] * 2
    assert ["*.safetensors" in patterns for _, patterns in wanted] == [False, True]
    assert all("*.json" in patterns for _, patterns in wanted)


@pytest.mark.parametrize("kind", [recipe.Recipe, recipe.FinetuneRecipe, recipe.LoopRecipe])
def test_a_bare_key_has_one_home(kind: type) -> None:
    sections = {n: f.annotation for n, f in kind.model_fields.items()}
    sections = {n: s for n, s in sections.items() if hasattr(s, "model_fields")}
    keys = [key for section in sections.values() for key in section.model_fields]
    assert len(keys) > 30
    assert len(set(keys)) == len(keys)


def test_a_bare_key_of_two_sections_says_which() -> None:
    class One(recipe._Strict):
        rows: int = 1

    class Both(recipe._Strict):
        first: One = One()
        second: One = One()

    with pytest.raises(UsageError, match=r"write first\.rows or second\.rows"):
        recipe.override({}, ["rows=2"], Both)
