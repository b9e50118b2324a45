"""`linearize inspect` tells what would be converted, and why something would not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import Command
from transformers import GPT2Config, GPT2LMHeadModel

from linearize import pretrained
from linearize.liger.modeling import apply
from linearize.liger.spec import LigerSpec


def test_a_real_model(stories: Path, linearize_command: Command) -> None:
    found = linearize_command("inspect", stories, "--json").json
    assert found["convertible"]
    assert found["model"]["parameters"] == 260_032
    assert found["layers"] == {"converted": [0, 1, 2, 3, 4], "kept_softmax": []}
    assert found["added_parameters"] == 5 * 8
    assert found["state_bytes"]["recurrent"] == 5 * 4 * 8 * 8 * 4
    assert found["state_bytes"]["window"] == 5 * 2 * 4 * 63 * 8 * 4
    assert found["kv_bytes_per_token"] == 5 * 2 * 4 * 8 * 4
    assert [row["tokens"] for row in found["memory"]] == [1024 * 2**i for i in range(8)]


def test_options_change_the_layer(stories: Path, linearize_command: Command) -> None:
    arguments = ["--window", "32", "--mix", "fixed", "--keep-softmax", "0", "--keep-softmax", "-1"]
    found = linearize_command("inspect", stories, *arguments, "--json").json
    assert found["spec"]["window"] == 32
    assert found["layers"]["kept_softmax"] == [0, 4]
    assert found["added_parameters"] == 0
    found = linearize_command("inspect", stories, "--every", "2", "--json").json
    assert found["layers"]["kept_softmax"] == [1, 3]


def test_the_table_names_what_matters(stories: Path, linearize_command: Command) -> None:
    ended = linearize_command("inspect", stories)
    assert ended.code == 0
    for told in ("260,032", "can be converted", "yes", "131,072", "per token"):
        assert told in ended.out


def test_an_unsupported_family_is_explained(tmp_path: Path, linearize_command: Command) -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    found = linearize_command("inspect", tmp_path / "gpt2", "--json").json
    assert not found["convertible"]
    assert "llama, mistral, mixtral" in found["reasons"][0]
    ended = linearize_command("inspect", tmp_path / "gpt2")
    assert ended.code == 0
    assert "no: models of type 'gpt2'" in ended.out


def test_a_pickle_checkpoint_cannot_be_converted(stories: Path, linearize_command: Command) -> None:
    torch.save({}, stories / "pytorch_model.bin")
    (stories / "model.safetensors").unlink()
    found = linearize_command("inspect", stories, "--json").json
    assert not found["convertible"]
    assert "pickle" in found["reasons"][0]


def test_a_converted_model_is_described(
    stories: Path, tmp_path: Path, linearize_command: Command
) -> None:
    apply(pretrained.load(stories), LigerSpec(window=16)).save_pretrained(tmp_path / "converted")
    found = linearize_command("inspect", tmp_path / "converted", "--json").json
    assert not found["convertible"]
    assert "converted already" in found["reasons"][0]
    assert found["spec"]["window"] == 16
    assert found["state_bytes"]["window"] == 5 * 2 * 4 * 15 * 8 * 4


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--gate", "gal"], 2, "did you mean 'gla'"),
        (["--mix", "learnt"], 2, "did you mean 'learned'"),
        (["--window", "1"], 2, "at least 2"),
        (["--keep-softmax", "9"], 2, "the model has 5 layers"),
    ],
)
def test_wrong_options(
    stories: Path, arguments: list[str], code: int, told: str, linearize_command: Command
) -> None:
    ended = linearize_command("inspect", stories, *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert told in ended.err


def test_missing_models(tmp_path: Path, stories: Path, linearize_command: Command) -> None:
    missing = linearize_command("inspect", tmp_path / "storeis260K")
    assert missing.code == 3
    assert "did you mean 'stories260K'" in missing.err
    (stories / "config.json").write_text("{")
    broken = linearize_command("inspect", stories, "--json")
    assert broken.code == 3
    assert "not valid JSON" in broken.json["error"]["message"]


def test_a_window_in_the_base(tmp_path: Path, stories: Path, linearize_command: Command) -> None:
    config = json.loads((stories / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (stories / "config.json").write_text(json.dumps({**config, "sliding_window": 32}))
    found = linearize_command("inspect", stories, "--json").json
    assert found["break_even_tokens"] is None
    assert "never: the base has a window of its own" in linearize_command("inspect", stories).out
