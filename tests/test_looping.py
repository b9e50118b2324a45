"""`linearize.loop`: a real pretrained model cut and trained, what it leaves behind, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import linearize
from linearize import pretrained, recipe
from linearize.converted import merge
from linearize.errors import InputError, Interrupted, UsageError
from linearize.eval import report
from linearize.liger.modeling import apply
from linearize.liger.spec import LigerSpec
from linearize.recipe import LoopRecipe
from linearize.training import loop as training
from linearize.training.evaluate import mean_loss
from linearize.training.packing import build_rows
from linearize.training.progress import read

STEPS = 10
SMALL = [
    "data.seq_len=64",
    "data.eval_tokens=512",
    f"training.tokens={STEPS * 2 * 64}",
    "training.batch_size=2",
    "training.checkpoint_every=2",
    "recurrence.mean=3",
    "recurrence.backprop=2",
    "measure.recurrences=[1, 2, 5]",
    "loop.prelude=1",
    "loop.core=2",
    "loop.coda=1",
]


@pytest.fixture(scope="module")
def settings(shared: Path) -> LoopRecipe:
    """A retrofit of a real model in seconds."""
    base = shared / "data" / "models" / "stories260K"
    text = shared / "data" / "tinystories" / "valid.txt"
    return recipe.load("loop", [f"base={base}", f"data.source={text}", *SMALL], LoopRecipe)


@pytest.fixture(scope="module")
def finished(settings: LoopRecipe, tmp_path_factory: pytest.TempPathFactory) -> linearize.Result:
    out = tmp_path_factory.mktemp("finished") / "out"
    return linearize.loop(settings.model_copy(update={"out": str(out)}))


def changed(settings: LoopRecipe, out: Path, *changes: str) -> LoopRecipe:
    values = recipe.override(settings.model_dump(mode="json"), [f"out={out}", *changes], LoopRecipe)
    return recipe.build(values, LoopRecipe)


def test_the_result_says_how_loss_depends_on_recurrences(
    finished: linearize.Result, settings: LoopRecipe
) -> None:
    found = finished.summary
    assert json.loads((finished.path / "result.json").read_text()) == found
    assert found["loop"]["kept"] == [0, 2, 3, 4]
    assert found["loop"]["dropped"] == [1]
    assert found["losses"]["pruned"] > found["losses"]["original"] + 0.5
    assert list(found["loss_by_recurrences"]) == ["1", "2", "5"]
    model = AutoModelForCausalLM.from_pretrained(finished.path)
    tokenizer = pretrained.tokenizer(finished.path)
    _, held_out, _ = build_rows(settings.data, tokenizer, settings.training.tokens)
    for count, loss in found["loss_by_recurrences"].items():
        model.spec = type(model.spec)(**{**model.spec.to_dict(), "recurrences": int(count)})
        assert mean_loss(model, held_out, batch_size=2)[0] == pytest.approx(loss, rel=1e-4)
    assert {c["name"] for c in found["checks"]} == {
        "cached decoding equals full forward",
        "saved equals trained",
    }
    records = read(finished.path / "metrics.jsonl")
    assert records[0]["recurrences"] < max(r["recurrences"] for r in records)


def test_it_trains_and_the_pruned_loss_is_that_of_the_base_without_the_layers(
    finished: linearize.Result, settings: LoopRecipe
) -> None:
    assert finished.summary["loss_by_recurrences"]["2"] < finished.summary["losses"]["pruned"]
    base = LlamaForCausalLM.from_pretrained(settings.base)
    del base.model.layers[1]
    base.config.num_hidden_layers = 4
    tokenizer = pretrained.tokenizer(Path(settings.base))
    _, held_out, _ = build_rows(settings.data, tokenizer, settings.training.tokens)
    expected = mean_loss(base.eval(), held_out, batch_size=2)[0]
    assert finished.summary["losses"]["pruned"] == pytest.approx(expected, rel=1e-5)


def test_card_and_report(finished: linearize.Result) -> None:
    card = (finished.path / "README.md").read_text()
    for told in ("stories260K, looped", "trained, 5 recurrences", "dropped: 1", "num_steps"):
        assert told in card
    page = report.write(finished.path).read_text()
    for loss in finished.summary["loss_by_recurrences"].values():
        assert f"{loss:.4f}" in page
        assert f"{loss:.4f}" in card
    assert "layers 1 dropped" in page
    assert "by_recurrences-" in page


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_low_rank(save: str, settings: LoopRecipe, tmp_path: Path) -> None:
    wanted = changed(settings, tmp_path / "out", "lora.rank=4", f"output.save={save}")
    done = linearize.loop(wanted)
    # q, o: 64 + 64; k, v: 64 + 32; gate, up, down: 64 + 172; of rank 4 in four layers; [z; e]
    assert done.summary["trained_parameters"] == 4 * 4 * (2 * 128 + 2 * 96 + 3 * 236) + 64 * 128
    model = linearize.load(done.path)
    assert model.loop.core == 2
    assert model.adapter.weight[:, :64].any(), "the adapter itself is trained"
    if save == "adapter":
        assert not (done.path / "model.safetensors").exists()
        merge(done.path, tmp_path / "merged")
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            whole = linearize.load(tmp_path / "merged")(ids).logits
            torch.testing.assert_close(model(ids).logits, whole)


@pytest.mark.parametrize("rank", [0, 4])
def test_converted_models_too(rank: int, settings: LoopRecipe, tmp_path: Path) -> None:
    converted = apply(pretrained.load(Path(settings.base)), LigerSpec(window=16))
    converted.save_pretrained(tmp_path / "base")
    pretrained.tokenizer(Path(settings.base)).save_pretrained(tmp_path / "base")
    changes = [f"base={tmp_path / 'base'}", f"lora.rank={rank}"]
    changes.append(f"output.save={'adapter' if rank else 'merged'}")
    done = linearize.loop(changed(settings, tmp_path / "out", *changes))
    model = linearize.load(done.path)
    assert model.loop.stateful
    ids, choices = torch.arange(3, 40)[None], {"do_sample": False, "max_new_tokens": 9}
    cached, without = (model.generate(ids, use_cache=c, **choices) for c in (True, False))
    assert cached.tolist() == without.tolist()


def test_interrupted_and_resumed_ends_with_the_same_weights(
    settings: LoopRecipe,
    finished: linearize.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = changed(settings, tmp_path / "out")
    drawn = training.recurrences

    def stop_in_step_5(step: int, *arguments, **more) -> tuple[int, int]:
        if step == 5:
            raise Interrupted("stop")
        return drawn(step, *arguments, **more)

    monkeypatch.setattr(training, "recurrences", stop_in_step_5)
    with pytest.raises(Interrupted):
        linearize.loop(wanted)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"another recipe \(different: loop\)"):
        linearize.loop(changed(wanted, tmp_path / "out", "core=1"), resume=True)
    again = linearize.loop(wanted, resume=True)
    ours, theirs = (load_file(p / "model.safetensors") for p in (again.path, finished.path))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])
    assert len(read(again.path / "metrics.jsonl")) == STEPS


def test_mistakes_come_before_anything_heavy(
    settings: LoopRecipe, finished: linearize.Result, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for change, kind, told in (
        ("loop.core=9", UsageError, "need 11 layers, and the model has 5"),
        ("training.objective={distill: 1}", UsageError, "'distill' needs the model as it was"),
        ("lora.targets=[q_porj]", UsageError, "q_porj"),
        (f"base={finished.path}", InputError, "looped already"),
        ("data.source=./no.txt", InputError, "no.txt"),
    ):
        more = ["lora.rank=4"] if "targets" in change else []
        with pytest.raises(kind, match=told):
            linearize.loop(changed(settings, out, change, *more))
    with pytest.raises(UsageError, match="set out"):
        linearize.loop(settings)
    assert not list(tmp_path.iterdir())
