import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize import pretrain
from linearize.errors import InputError, Interrupted, OutputError, UsageError

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def recipe(tmp_path: Path, **changes: object) -> Path:
    (tmp_path / "text.txt").write_text(
        "\n<|endoftext|>\n".join(
            f"{i} plus {j} is {i + j}. " * 6 for i in range(12) for j in range(5)
        )
    )
    values = {
        "model": SHAPE,
        "tokenizer": {"vocab_size": 270},
        "data": {"source": str(tmp_path / "text.txt"), "eval_fraction": 0.1, "eval_tokens": 500},
        "training": {
            "objective": {"next_token": 1.0},
            "learning_rate": 1e-2,
            "batch_size": 4,
            "device": "cpu",
        },
        "stages": [
            {"data": {"seq_len": 32}, "training": {"tokens": 2560, "schedule": "constant"}},
            {"data": {"seq_len": 64}, "training": {"tokens": 10240}},
        ],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_a_model_comes_out_and_an_interrupted_run_gives_the_same(tmp_path: Path) -> None:
    settings = pretrain.load(str(recipe(tmp_path)))
    straight = pretrain.pretrain(settings, tmp_path / "straight")
    record = json.loads((straight / "pretraining.json").read_text())
    assert record["tokens"] == 12_800
    assert record["data"]["documents"] == 54
    assert record["held_out_loss"] < 3.0  # ln(270) is 5.6
    assert record["held_out_loss_bfloat16"] == pytest.approx(record["held_out_loss"], abs=0.02)
    assert record["held_out_loss_by_position"]["edges"] == [0, 16, 32, 64]

    model = AutoModelForCausalLM.from_pretrained(straight)
    tokenizer = AutoTokenizer.from_pretrained(straight)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == record["parameters"]
    assert (model.config.vocab_size, len(tokenizer)) == (270, 270)
    assert model.config.eos_token_id == tokenizer.eos_token_id == 1

    metrics = tmp_path / "halved.partial/stage-2/metrics.jsonl"

    def stop() -> None:
        while not (metrics.exists() and '"step": 3' in metrics.read_text()):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="--resume continues"):
        pretrain.pretrain(settings, tmp_path / "halved")
    thread.join()
    assert not (tmp_path / "halved").exists()
    with pytest.raises(OutputError, match="unfinished run"):
        pretrain.pretrain(settings, tmp_path / "halved")
    resumed = pretrain.pretrain(settings, tmp_path / "halved", resume=True)
    first, second = (load_file(path / "model.safetensors") for path in (straight, resumed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {p.name for p in resumed.iterdir()} == {p.name for p in straight.iterdir()}


def test_recipes_that_describe_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.llama\.hidden_sice: Extra inputs"):
        pretrain.load(str(recipe(tmp_path, model=SHAPE | {"hidden_sice": 3})))
    with pytest.raises(UsageError, match=r"model: Field required"):
        pretrain.load("smoke")
    with pytest.raises(UsageError, match="rows of 256 tokens exceed the model's context of 128"):
        pretrain.load(str(recipe(tmp_path, stages=[{"data": {"seq_len": 256}}])))
    with pytest.raises(UsageError, match="'recurrence' belongs to a looped model"):
        pretrain.load(str(recipe(tmp_path, recurrence={"mean": 4})))
    with pytest.raises(UsageError, match="learning_rat"):
        pretrain.load(str(recipe(tmp_path, stages=[{"training": {"learning_rat": 1}}])))
    with pytest.raises(InputError, match="did you mean 'embedded'"):
        pretrain.load("embeded")


def test_the_shipped_recipes_are_valid() -> None:
    settings = pretrain.load("embedded")
    rows = [settings.stage(i)[0].seq_len for i in range(len(settings.stages))]
    assert rows[-1] == settings.model.context
    assert pretrain.load("looped").recurrence.mean == 8


def test_a_looped_model_comes_out(tmp_path: Path) -> None:
    shape = {"architecture": "huginn_raven", "n_embd": 32, "n_heads": 2, "intermediate_size": 48}
    layers = {f"n_layers_in_{part}": 1 for part in ("prelude", "recurrent_block", "coda")}
    depth = {"mean_recurrence": 4, "mean_backprop_depth": 2, "block_size": 64}
    settings = pretrain.load(
        str(recipe(tmp_path, model=shape | layers | depth, recurrence={"mean": 4, "backprop": 2}))
    )
    out = pretrain.pretrain(settings, tmp_path / "looped")
    record = json.loads((out / "pretraining.json").read_text())
    found = record["held_out_loss_by_recurrences"]
    assert list(found) == ["1", "2", "4", "8", "16", "32"]
    assert found["4"] == pytest.approx(record["held_out_loss_bfloat16"])
    assert found["4"] < 3.0  # ln(270) is 5.6
    model = AutoModelForCausalLM.from_pretrained(out)
    assert (type(model).__name__, model.dtype) == ("RavenForCausalLM", torch.bfloat16)
    assert model.loop.recurrences == 4


def test_the_command_ends_with_a_line_and_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = recipe(tmp_path, data={"source": str(tmp_path / "none.txt")})
    monkeypatch.setattr(
        "sys.argv", ["pretrain", "--recipe", str(path), "--out", str(tmp_path / "o")]
    )
    assert pretrain.main() == InputError.exit_code
    assert "there is no file" in capsys.readouterr().err
