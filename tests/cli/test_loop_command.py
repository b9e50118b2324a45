"""`linearize loop`: the plan, the whole path, and what a person does wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

CUT = ["--prelude", "1", "--core", "2", "--coda", "1"]
SMALL = ["seq_len=64", "eval_tokens=512", "batch_size=2", "measure.recurrences=[1, 3]"]


def test_the_plan(stories: Path, text: Path, tmp_path: Path, linearize_command: Command) -> None:
    before = sorted(tmp_path.iterdir())
    arguments = ("loop", stories, *CUT, "--data", text, "--dry-run", "--recurrences", "5")
    ended = linearize_command(*arguments, "--json", "--out", tmp_path / "out")
    assert ended.code == 0, ended.out
    found = ended.json
    assert found["loop"]["dropped"] == [1]
    assert found["recurrence"]["mean"] == 5
    # without one layer of 45,440 parameters, with an adapter of 64 times 128
    assert found["parameters"]["trained"] == 260_032 - 45_440 + 64 * 128
    assert sorted(tmp_path.iterdir()) == before
    shown = " ".join(linearize_command(*arguments).out.split())
    for told in ("core 2", "layers dropped: 1", "all there are", "5 on average", "add --out"):
        assert told in shown


def test_the_whole_path(
    stories: Path, shared: Path, tmp_path: Path, linearize_command: Command
) -> None:
    data, out = shared / "data" / "tinystories" / "valid.txt", tmp_path / "out"
    arguments = ["loop", stories, *CUT, "--data", data, *SMALL, "--tokens", "512", "--out", out]
    ended = linearize_command(*arguments, "--json")
    assert ended.code == 0, ended.out + ended.err
    found = ended.json
    saved = json.loads((out / "result.json").read_text())
    assert {**found, **saved} == found
    assert set(found["loss_by_recurrences"]) == {"1", "3"}
    assert "trained, 3 recurrences" in (out / "report.html").read_text()
    assert linearize_command(*arguments).code == 5
    again = linearize_command(*arguments, "--overwrite")
    assert again.code == 0, again.err
    assert f"decode {out} --sampler" in " ".join(again.out.split())


MISTAKES = {
    "no core": (["--core", "0"], 2, "loop.core"),
    "more layers than there are": (["--coda", "4"], 2, "need 7 layers, and the model has 5"),
    "unknown key": (["loop.prelud=1"], 2, "did you mean 'loop.prelude'"),
    "recurrences": (["--recurrences", "0"], 2, "recurrence.mean"),
    "recipe of another job": (["--recipe", "liger"], 2, "unknown recipe key 'liger'"),
    "nowhere to write": (["--out", ""], 2, "add --out DIR"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_retrofit(
    mistake: str, stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    arguments, code, told = MISTAKES[mistake]
    common = [*CUT, "--data", text, "--out", tmp_path / "out", *SMALL]
    ended = linearize_command("loop", stories, *common, *arguments)
    assert ended.code == code, ended.err
    assert told in ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert not (tmp_path / "out").exists()


def test_models_of_other_families(
    stories: Path, text: Path, tmp_path: Path, linearize_command: Command
) -> None:
    config = json.loads((stories / "config.json").read_text())
    config |= {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (stories / "config.json").write_text(json.dumps(config))
    ended = linearize_command("loop", stories, *CUT, "--data", text, "--out", tmp_path / "out")
    assert ended.code == 3
    assert "supported families: llama, mistral, olmo2, qwen2, qwen3" in ended.err
