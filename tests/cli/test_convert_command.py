"""`linearize convert`: the plan, and what a person does wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import Command

from linearize import pretrained
from linearize.cli import _options as options
from linearize.liger import bases
from linearize.liger.modeling import apply
from linearize.liger.spec import LigerSpec


def plan(command: Command, *arguments: str | Path) -> dict:
    ended = command("convert", *arguments, "--dry-run", "--json")
    assert ended.code == 0, ended.out + ended.err
    return ended.json


def test_a_plan_writes_nothing_and_knows_the_sizes(
    stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    before = sorted(tmp_path.iterdir())
    found = plan(linearize_command, stories, "--data", text, "--out", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    rank, layers = 16, 5
    assert found["parameters"]["adapters"] == layers * rank * 2 * (2 * 64 + 64 + 32)
    assert found["parameters"]["mix"] == layers * 8 * (1 + 8)  # heads, and channels of each
    assert found["training"]["tokens_per_step"] == 8 * 512
    assert found["training"]["steps"] == -(-20_000_000 // (8 * 512))
    assert found["memory_bytes"]["total"] > found["memory_bytes"]["weights"] > 4 * 260_000
    assert found["fits"]


def test_precedence_is_recipe_then_override_then_option(
    stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("liger: {window: 16}\ntraining: {tokens: 1000, batch_size: 2}\n")
    common = (stories, "--data", text, "--recipe", recipe)
    found = plan(linearize_command, *common, "window=32")
    assert found["swap"]["spec"]["window"] == 32
    assert found["training"]["tokens_per_step"] == 2 * 512
    found = plan(linearize_command, *common, "window=32", "--window", "48", "--tokens", "4096")
    assert found["swap"]["spec"]["window"] == 48
    assert found["training"]["tokens"] == 4096


def test_the_model_may_come_from_the_recipe(
    stories: Path, text: Path, linearize_command: Command
) -> None:
    found = plan(linearize_command, f"base={stories}", f"source={text}", "rank=4")
    assert found["model"]["path"] == str(stories)
    assert found["parameters"]["adapters"] == 8960


def test_the_plan_as_text(stories: Path, text: Path, linearize_command: Command) -> None:
    ended = linearize_command("convert", stories, "--data", text, "--dry-run", "keep_softmax=[0]")
    assert ended.code == 0
    for told in ("4 attention layers", "layers 0 stay softmax", "36,128 parameters", "add --out"):
        assert told in " ".join(ended.out.split())
    chosen = ("keep_softmax=auto:1", "every=2", "--data", text, "--dry-run")
    shown = " ".join(linearize_command("convert", stories, *chosen).out.split())
    assert "2 attention layers" in shown
    assert "layers 1, 3 stay softmax; the 1 damaged most, to be measured, stay softmax" in shown


MISTAKES = {
    "unknown key": (["windwo=3"], 2, "did you mean 'window'"),
    "value out of range": (["window=1"], 2, "liger.window"),
    "not an override": (["window"], 2, "write key=value"),
    "unknown recipe": (["--recipe", "ligre"], 3, "did you mean 'liger'"),
    "recipe file": (["--recipe", "no.yaml"], 3, "cannot read recipe no.yaml"),
    "prose as recipe": (["--recipe", "text.txt"], 2, "not valid YAML"),
    "softmax layers in words": (["keep_softmax=first"], 2, "auto:k"),
    "unknown gate": (["--gate", "gal"], 2, "did you mean 'gla'"),
    "unknown mix": (["--mix", "none"], 2, "liger.mix"),
    "unknown objective": (["training.objective={distil: 1}"], 2, "did you mean 'distill'"),
    "unknown LoRA target": (["targets=[q_porj]"], 2, "did you mean 'q_proj'"),
    "unknown dtype": (["--dtype", "float8"], 2, "training.dtype"),
    "unknown device": (["--device", "gpu"], 2, "device='gpu'"),
    "missing data": (["--data", "./no.txt"], 3, "no.txt"),
}


def test_what_may_not_be_meant_is_noted(
    stories: Path, text: Path, linearize_command: Command
) -> None:
    notes = plan(linearize_command, stories, "--data", text, "seq_len=1024", "window=2048")["notes"]
    assert "longer than the base's context of 512" in notes[0]
    assert "nothing to learn" in notes[1]
    assert plan(linearize_command, stories, "--data", text)["notes"] == []


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("dry", [True, False])
def test_mistakes(
    mistake: str,
    dry: bool,
    stories: Path,
    text: Path,
    tmp_path: Path,
    linearize_command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, code, told = MISTAKES[mistake]
    data = ["--data", text] if "--data" not in arguments else []
    common = ["--out", tmp_path / "out", *data, *["--dry-run"] * dry]
    ended = linearize_command("convert", stories, *common, *arguments)
    assert ended.code == code, ended.err
    assert told in ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_run_needs_a_model_and_somewhere_to_write(
    stories: Path, linearize_command: Command
) -> None:
    assert "add --out DIR" in linearize_command("convert", stories, "--out", "").err
    assert "name it first" in linearize_command("convert", "rank=4", "--out", "x").err


def pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")


def truncate(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def encoder(model: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (model / "config.json").write_text(json.dumps(config))


def unsupported(model: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (model / "config.json").write_text(json.dumps(config))


def remote(model: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (model / "config.json").write_text(json.dumps(config))


def no_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def converted(model: Path) -> None:
    apply(pretrained.load(model), LigerSpec()).save_pretrained(model)


DAMAGES = {
    converted: "is converted already",
    pickle: "pickle checkpoint",
    truncate: "truncated or damaged",
    encoder: "not a decoder-only language model",
    unsupported: "supported base families: gemma2",
    remote: "--trust-remote-code",
    no_tokenizer: "has no tokenizer",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("dry", [True, False])
def test_bad_models(
    damage, dry: bool, stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    damage(stories)
    out = tmp_path / "out"
    arguments = ("convert", stories, "--data", text, "--out", out, *["--dry-run"] * dry)
    ended = linearize_command(*arguments)
    assert ended.code == 3, ended.err
    assert DAMAGES[damage] in ended.err
    assert ended.err.count("\n") == 1
    assert not out.exists()
    as_json = linearize_command(*arguments, "--json")
    assert as_json.json["error"]["exit_code"] == 3


def test_wrong_field(stories: Path, tmp_path: Path, linearize_command: Command) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"content": "hello there"}\n')
    ended = linearize_command(
        "convert", stories, "--data", rows, "--dry-run", "data.field=contents"
    )
    assert ended.code == 2
    assert "did you mean 'content'" in ended.err


def test_an_output_in_the_way(
    stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("{}")
    arguments = ("convert", stories, "--data", text, "--out", out)
    for extra in ([], ["--dry-run"]):
        ended = linearize_command(*arguments, *extra)
        assert ended.code == 5
        assert "not empty" in ended.err
    (out / "result.json").unlink()
    (tmp_path / "out.partial").mkdir()
    ended = linearize_command(*arguments)
    assert ended.code == 5
    assert "--resume" in ended.err
    source = linearize_command("convert", stories, "--data", text, "--out", stories, "--overwrite")
    assert source.code == 2
    assert (stories / "config.json").exists()


def test_help_names_every_family_that_can_be_converted(linearize_command: Command) -> None:
    assert options.FAMILIES.split(", ") == bases.supported()
    for command in ("convert", "swap", "inspect"):
        assert "smollm3" in linearize_command(command, "--help").out
