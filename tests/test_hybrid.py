"""Layers that stay softmax: named, every so many, or chosen by what converting each one costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import linearize
from linearize import pretrained, recipe, sensitivity
from linearize.errors import UsageError
from linearize.inspection import inspect
from linearize.liger.modeling import apply, spec_of
from linearize.liger.spec import LigerSpec
from linearize.plan import plan
from linearize.recipe import Recipe
from linearize.training import evaluate, packing


@pytest.fixture(scope="module")
def settings(shared: Path) -> Recipe:
    return recipe.load(
        "smoke",
        [
            f"base={shared / 'data' / 'models' / 'stories260K'}",
            f"data.source={shared / 'data' / 'tinystories' / 'valid.txt'}",
            "data.seq_len=128",
            "data.eval_tokens=2048",
            "liger.window=4",
            "liger.keep_softmax=auto:2",
            "training.tokens=1024",
        ],
    )


@pytest.mark.parametrize(
    ("layers", "spec", "kept"),
    [
        (24, LigerSpec(every=8), [7, 15, 23]),
        (26, LigerSpec(every=8), [7, 15, 23]),
        (6, LigerSpec(every=3, keep_softmax=(0, -1)), [0, 2, 5]),
    ],
)
def test_every_so_many_layers_are_kept(layers: int, spec: LigerSpec, kept: list[int]) -> None:
    assert spec.resolved(layers) == LigerSpec(keep_softmax=kept)


def test_what_keeps_nothing_or_everything_is_refused(settings: Recipe) -> None:
    with pytest.raises(UsageError, match="keeps no layer: the model has 5 layers"):
        inspect(settings.base, LigerSpec(every=6))
    with pytest.raises(UsageError, match="at least 2"):
        LigerSpec(every=1)
    with pytest.raises(UsageError, match="5 to choose from; keep at most 4"):
        plan(changed(settings, keep_softmax="auto:5"))
    with pytest.raises(UsageError, match=r"3 to choose\s+from"):
        plan(changed(settings, keep_softmax="auto:3", every=2))
    for wrong in ("auto", "auto:0", "3", "[first]"):
        with pytest.raises(UsageError, match="or auto:k to measure"):
            recipe.load("liger", [f"keep_softmax={wrong}"])


def changed(settings: Recipe, **liger: object) -> Recipe:
    return settings.model_copy(update={"liger": settings.liger.model_copy(update=liger)})


def test_the_plan_is_as_large_as_what_will_be_chosen(settings: Recipe) -> None:
    found, known = plan(settings), plan(changed(settings, keep_softmax=[1, 3]))
    assert found["swap"]["layers"] == [0, 1, 2, 3, 4]
    assert (found["swap"]["kept_softmax"], found["swap"]["measured"]) == ([], 2)
    assert (known["swap"]["kept_softmax"], known["swap"]["measured"]) == ([1, 3], 0)
    for figure in ("parameters", "memory_bytes", "state_bytes"):
        assert found[figure] == known[figure]


def test_damage_is_the_loss_with_that_layer_alone_converted(settings: Recipe) -> None:
    path = pretrained.locate(settings.base)
    held_out = packing.build_rows(settings.data, pretrained.tokenizer(path), 1024)[1]
    spec = LigerSpec(window=4, mix="fixed")
    found = sensitivity.measure(apply(pretrained.load(path), spec), held_out, batch_size=8)
    base = pretrained.load(path)
    assert found["teacher"] == pytest.approx(evaluate.mean_loss(base, held_out, batch_size=8)[0])
    for row in found["layers"]:
        others = tuple(i for i in range(5) if i != row["layer"])
        alone = apply(pretrained.load(path), LigerSpec(**{**vars(spec), "keep_softmax": others}))
        loss = evaluate.mean_loss(alone, held_out, batch_size=8)[0]
        assert row["loss"] == pytest.approx(loss, abs=1e-5)
        assert row["damage"] == pytest.approx(loss - found["teacher"], abs=1e-5)
    worst = max(found["layers"], key=lambda row: row["damage"])
    assert sensitivity.choose(found, 1) == [worst["layer"]]
    assert len({round(row["damage"], 3) for row in found["layers"]}) == 5


def test_the_choice_is_saved_and_survives_a_resume(settings: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = settings.model_copy(update={"out": str(out)})
    done = linearize.convert(run)
    table = json.loads((out / sensitivity.FILE).read_text())
    assert table == done.summary["sensitivity"]
    assert table["kept"] == sensitivity.choose(table, 2)
    stored = json.loads((out / "config.json").read_text())["linearize"]
    assert stored["spec"]["keep_softmax"] == table["kept"] == done.summary["spec"]["keep_softmax"]
    assert stored["provenance"]["recipe"]["liger"]["keep_softmax"] == "auto:2"
    assert spec_of(linearize.load(out).config).keep_softmax == tuple(table["kept"])

    again = tmp_path / "again"
    partial = tmp_path / "again.partial"
    partial.mkdir()
    others = [i for i in range(5) if i not in table["kept"]][:2]
    sensitivity.write(partial, {**table, "kept": others})  # could not be measured like this
    resumed = linearize.convert(settings.model_copy(update={"out": str(again)}), resume=True)
    assert resumed.summary["spec"]["keep_softmax"] == others
    assert not torch.isnan(torch.tensor(resumed.summary["losses"]["student"]))
