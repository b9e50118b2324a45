"""`linearize finetune`: the plan, the whole path, and what a person does wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

SMALL = ["tokens=1024", "seq_len=64", "eval_tokens=512", "batch_size=2", "lora.rank=4"]
MEASURE = ["prompts=3", "prompt_tokens=20", "new_tokens=16"]


def test_the_plan(stories: Path, text: Path, tmp_path: Path, linearize_command: Command) -> None:
    before = sorted(tmp_path.iterdir())
    arguments = ("finetune", stories, "--data", text, "--dry-run")
    ended = linearize_command(*arguments, "--json", "--out", tmp_path / "out")
    assert ended.code == 0, ended.out
    found = ended.json
    # q, o: 64 + 64; k, v: 64 + 32; gate, up, down: 64 + 172; of rank 32 in five layers.
    assert found["parameters"]["adapters"] == 5 * 32 * (2 * 128 + 2 * 96 + 3 * 236)
    assert found["repetition"]["penalty"] == 0.5
    assert sorted(tmp_path.iterdir()) == before
    full = linearize_command(
        *arguments, "--json", "rank=0", "--recipe", "unlikelihood", "seq_len=1024"
    ).json
    assert full["parameters"]["trained"] == 260_032
    assert full["repetition"] is None
    assert "longer than the model's context of 512" in full["notes"][0]
    shown = " ".join(linearize_command(*arguments).out.split())
    for told in ("in adapters", "next_token 1", "ditto 1", "unit sentence", "add --out"):
        assert told in shown
    own = " ".join(linearize_command(*arguments, "--recipe", "ditto-own").out.split())
    assert "by the model itself, anew every" in own
    assert "a copy may have 0.2 of the probability of the best other" in own


def test_the_whole_path(
    stories: Path, shared: Path, tmp_path: Path, linearize_command: Command
) -> None:
    data, out = shared / "data" / "tinystories" / "valid.txt", tmp_path / "out"
    arguments = ["finetune", stories, "--data", data, *SMALL, *MEASURE, "--out", out]
    ended = linearize_command(*arguments, "--json")
    assert ended.code == 0, ended.out + ended.err
    found = ended.json
    assert found["path"] == str(out)
    assert found["measured"]["before"]["tokens"] == 16
    assert set(found["measured"]["after"]) >= {"rep-4", "ended", "loop rep-4", "loop goes on"}
    assert found["measured"]["before"]["text perplexity"] > 1
    assert found["measured"]["before"]["text rep-4"] == found["measured"]["after"]["text rep-4"]
    saved = json.loads((out / "result.json").read_text())
    assert {**found, **saved} == found
    assert linearize_command(*arguments).code == 5
    again = linearize_command(*arguments, "--overwrite", "measure.prompts=0")
    assert again.code == 0, again.err
    shown = " ".join(again.out.split())
    assert "perplexity" in shown
    assert "rep-4" not in shown
    assert f"decode {out}" in shown


MISTAKES = {
    "unknown key": (["repetition.shair=1"], 2, "did you mean 'repetition.share'"),
    "key of another job": (["liger.window=3"], 2, "liger.window"),
    "recipe of another job": (["--recipe", "liger"], 2, "unknown recipe key 'liger'"),
    "value out of range": (["penalty=2"], 2, "repetition.penalty"),
    "unknown recipe": (["--recipe", "dito"], 3, "did you mean 'ditto'"),
    "nowhere to write": (["--out", ""], 2, "add --out DIR"),
    "prompts longer than the documents": (["prompt_tokens=5000"], 3, "measure.prompts=0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_finetuning(
    mistake: str, stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    arguments, code, told = MISTAKES[mistake]
    common = ["--data", text, "--out", tmp_path / "out", *SMALL]
    ended = linearize_command("finetune", stories, *common, *arguments)
    assert ended.code == code, ended.err
    assert told in ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_finetuning_needs_a_model(linearize_command: Command) -> None:
    assert "name it first" in linearize_command("finetune", "rank=4", "--out", "x").err
