"""`linearize.finetune`: any causal LM, what it leaves behind, and that stopping changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import linearize
from linearize import pretrained, recipe
from linearize.converted import merge
from linearize.errors import InputError, UsageError
from linearize.liger.modeling import apply
from linearize.liger.spec import LigerSpec
from linearize.recipe import FinetuneRecipe
from linearize.training.progress import read

STEPS = 12
SMALL = [
    "data.seq_len=64",
    "data.eval_tokens=512",
    f"training.tokens={STEPS * 2 * 64}",
    "training.batch_size=2",
    "training.checkpoint_every=2",
    "lora.rank=4",
]


@pytest.fixture(scope="module")
def settings(shared: Path) -> FinetuneRecipe:
    """A fine-tuning of a real model in seconds."""
    base = shared / "data" / "models" / "stories260K"
    text = shared / "data" / "tinystories" / "valid.txt"
    objective = "training.objective={distill: 1.0, ditto: 1.0}"
    changes = [f"base={base}", f"data.source={text}", objective, *SMALL]
    return recipe.load("ditto", changes, FinetuneRecipe)


def measure(model, tokenizer) -> dict[str, float]:
    """Cheap, and not the same before and after."""
    assert not model.training
    ids = torch.tensor([tokenizer("Once upon a time").input_ids])
    with torch.no_grad():
        return {"confidence": model(ids).logits.softmax(-1).max(-1).values.mean().item()}


@pytest.fixture(scope="module")
def finished(
    settings: FinetuneRecipe, tmp_path_factory: pytest.TempPathFactory
) -> linearize.Result:
    out = tmp_path_factory.mktemp("finished") / "out"
    return linearize.finetune(settings.model_copy(update={"out": str(out)}), measure=measure)


def test_the_result_says_what_changed(finished: linearize.Result, settings) -> None:
    found = finished.summary
    assert json.loads((finished.path / "result.json").read_text()) == found
    assert found["losses"]["before"] != found["losses"]["after"]
    assert found["measured"]["before"] != found["measured"]["after"]
    assert found["spec"] is None
    assert {c["name"] for c in found["checks"]} == {
        "merged equals adapter",
        "saved equals trained",
    }
    records = read(finished.path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert {key for r in records for key in r} >= {"ditto", "distill"}
    model = AutoModelForCausalLM.from_pretrained(finished.path)
    assert model.config.model_type == "llama"
    assert model.config.linearize["provenance"]["hash"] == pretrained.content_hash(
        Path(settings.base)
    )
    assert measure(model.eval(), pretrained.tokenizer(finished.path)) == pytest.approx(
        found["measured"]["after"], rel=1e-4
    )
    card = (finished.path / "README.md").read_text()
    for told in ("stories260K, fine-tuned", "confidence", "perplexity", "ditto"):
        assert told in card
    assert not (finished.path / "checkpoints").exists()


def changed(settings: FinetuneRecipe, base: Path, out: Path, *more: str) -> FinetuneRecipe:
    values = recipe.override(
        settings.model_dump(mode="json"), [f"base={base}", f"out={out}", *more], FinetuneRecipe
    )
    return recipe.build(values, FinetuneRecipe)


SIZES = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_layer": 2, "n_embd": 32, "n_head": 2}),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64},
    ),
    "mamba": (
        MambaForCausalLM, MambaConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("rank", [0, 4])
def test_other_architectures(kind: str, rank: int, settings, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, config, sizes = SIZES[kind]
    model = made(config(vocab_size=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes))
    model.save_pretrained(tmp_path / "base")
    pretrained.tokenizer(Path(settings.base)).save_pretrained(tmp_path / "base")
    changes = [f"lora.rank={rank}", "training.objective={next_token: 1.0, ditto: 1.0}"]
    if kind == "mamba":  # peft refuses adapters on what its kernels read directly
        changes.append("lora.targets=[in_proj, x_proj]")
    wanted = changed(settings, tmp_path / "base", tmp_path / "out", *changes)
    done = linearize.finetune(wanted)
    assert (done.summary["trained_parameters"] == done.summary["total_parameters"]) == (rank == 0)
    before, after = model.state_dict(), load_file(done.path / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in after if name in before)
    assert type(AutoModelForCausalLM.from_pretrained(done.path)) is made


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_converted_models_too(save: str, settings: FinetuneRecipe, tmp_path: Path) -> None:
    base = tmp_path / "base"
    converted = apply(pretrained.load(Path(settings.base)), LigerSpec(window=16))
    converted.save_pretrained(base)
    pretrained.tokenizer(Path(settings.base)).save_pretrained(base)
    wanted = changed(settings, base, tmp_path / "out", f"output.save={save}")
    done = linearize.finetune(wanted)
    assert done.summary["spec"]["window"] == 16
    model = linearize.load(done.path)
    assert type(model) is type(converted)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, converted(ids).logits)


def test_adapters_load_and_merge(settings: FinetuneRecipe, tmp_path: Path) -> None:
    wanted = changed(settings, Path(settings.base), tmp_path / "out", "output.save=adapter")
    done = linearize.finetune(wanted)
    assert not (done.path / "model.safetensors").exists()
    merge(done.path, tmp_path / "merged")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, whole = (linearize.load(p)(ids).logits for p in (done.path, tmp_path / "merged"))
    torch.testing.assert_close(ours, whole)


def test_mistakes_come_before_anything_heavy(settings: FinetuneRecipe, tmp_path: Path) -> None:
    base, out = Path(settings.base), tmp_path / "out"
    for change, kind, told in (
        ("lora.targets=[q_porj]", UsageError, r"q_porj.*linear layers here: .*q_proj"),
        ("lora.rank=0", UsageError, "objective 'distill' needs"),
        ("training.objective={ditto: 1}", UsageError, "add next_token"),
        ("training.objective={dito: 1}", UsageError, "did you mean 'ditto'"),
        ("repetition.share=2", UsageError, "repetition.share"),
        ("data.source=./no.txt", InputError, "no.txt"),
    ):
        with pytest.raises(kind, match=told):
            linearize.finetune(changed(settings, base, out, change))
    with pytest.raises(UsageError, match="set out"):
        linearize.finetune(settings)
    assert not list(tmp_path.iterdir())


def test_killed_and_resumed_ends_with_the_same_weights(
    settings: FinetuneRecipe, finished: linearize.Result, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in (signal.SIGTERM, signal.SIGKILL):
        _stop_after_a_step(settings, out, number)
        assert not out.exists()
    wanted = settings.model_copy(update={"out": str(out)})
    with pytest.raises(UsageError, match=r"another recipe \(different: repetition\)"):
        linearize.finetune(changed(wanted, Path(settings.base), out, "units=1"), resume=True)
    again = linearize.finetune(wanted, measure=measure, resume=True)
    ours, theirs = (load_file(p / "model.safetensors") for p in (again.path, finished.path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.summary["losses"] == finished.summary["losses"]
    assert again.summary["measured"] == finished.summary["measured"]


def _stop_after_a_step(settings: FinetuneRecipe, out: Path, number: signal.Signals) -> None:
    """Start or resume a run in a process of its own, and signal it one step later."""
    file = out.with_suffix(".yaml")
    file.write_text(recipe.dump(settings))
    command = [sys.executable, "-m", "linearize.cli.main", "finetune", "--recipe", str(file)]
    metrics = out.with_name(out.name + ".partial") / "metrics.jsonl"
    done = len(read(metrics))
    with (
        out.with_suffix(".err").open("w") as told,
        subprocess.Popen(
            [*command, "--out", str(out), "--resume", "measure.prompts=0"],
            stdout=subprocess.DEVNULL,
            stderr=told,
        ) as process,
    ):
        deadline = time.monotonic() + 120
        while len(read(metrics)) < done + 3 and time.monotonic() < deadline:
            assert process.poll() is None, out.with_suffix(".err").read_text()
            time.sleep(0.01)
        process.send_signal(number)


def test_conversions_know_these_objectives_too(settings: FinetuneRecipe, tmp_path: Path) -> None:
    wanted = recipe.load(
        "smoke",
        [
            *(f"base={settings.base}", f"data.source={settings.data.source}", *SMALL),
            *(f"out={tmp_path / 'out'}", "training.objective={distill: 1.0, ditto: 1.0}"),
        ],
    )
    done = linearize.convert(wanted)
    kinds = [{"distill", "ditto"} & r.keys() for r in read(done.path / "metrics.jsonl")]
    assert {"ditto"} in kinds
    assert {"distill"} in kinds


def test_rows_that_the_model_writes(settings: FinetuneRecipe, tmp_path: Path) -> None:
    changes = [f"base={settings.base}", f"data.source={settings.data.source}", *SMALL]
    changes += [f"out={tmp_path / 'out'}", "repetition.context=20", "repetition.refresh=5"]
    done = linearize.finetune(recipe.load("ditto-own", changes, FinetuneRecipe))
    known = {"cap", "distill", "next_token"}
    kinds = [known & r.keys() for r in read(done.path / "metrics.jsonl")]
    assert {"cap"} in kinds
    assert {"distill", "next_token"} in kinds
    again = linearize.finetune(
        recipe.load("ditto-own", [*changes, f"out={tmp_path / 'same'}"], FinetuneRecipe)
    )
    assert again.summary["losses"] == done.summary["losses"]
