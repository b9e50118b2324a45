"""Training with prefixes: the published loss, the rows, and a conversion from its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import linearize
from linearize import recipe
from linearize.errors import InputError, UsageError
from linearize.recipe import EncoderSettings
from linearize.training import objectives, prefix_rows
from linearize.training.objectives import Forward
from linearize.training.packing import IGNORED, Rows
from linearize.training.prefix_rows import PrefixRows


def rows(**settings) -> PrefixRows:
    text = np.arange(1, 10 * 64 - 10, dtype=np.int32)
    return PrefixRows(
        text, np.array([0]), 64, False, settings=EncoderSettings(**settings), mask_id=7777
    )


def test_the_published_loss(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "jrt" / "loss_a.json").read_text())
    N, M = golden["seq_len"], golden["enc_length"]
    tokens = torch.tensor([golden["tokens"]])
    hidden = torch.zeros(1, N, dtype=torch.bool)
    hidden[0, :M] = torch.tensor(golden["masked"]).bool()
    batch = prefix_rows.masked(
        {"input_ids": tokens[:, :N], "targets": tokens[:, 1:]},
        torch.tensor([M]),
        hidden,
        golden["mask_token_id"],
    )
    assert batch["input_ids"].tolist() == [golden["inputs"]]
    both = torch.maximum(batch["targets"], batch["masked_targets"])
    assert both.tolist() == [golden["labels"]]
    step = Forward(torch.nn.Identity(), batch)
    step.__dict__["logits"] = torch.tensor([golden["logits"]], dtype=torch.float64)
    weights = {"next_token": golden["w_ntp"], "masked_prefix": golden["w_mlm"]}
    loss, values = objectives.total(step, weights)
    close = {"abs": 1e-6}
    assert values["next_token"].item() == pytest.approx(golden["ntp"], **close)
    assert values["masked_prefix"].item() == pytest.approx(golden["mlm"], **close)
    assert loss.item() == pytest.approx(golden["loss_sum"], **close)
    assert loss.item() / 1.25 == pytest.approx(golden["loss_paper_normalised"], **close)


def test_no_token_of_a_prefix_is_a_target() -> None:
    made = rows(rows=0.5, shortest=0.2, longest=0.8, masked=0.3)
    torch.manual_seed(0)
    lengths, hidden = [], 0
    for first in range(0, 400):
        batch = made.batch([first % 10, (first + 1) % 10, 9])
        place = torch.arange(64)
        inside = place < batch["prefix_lengths"][:, None]
        assert (batch["targets"][inside] == IGNORED).all()
        assert (batch["masked_targets"][~inside] == IGNORED).all()
        asked = batch["masked_targets"] != IGNORED
        assert (batch["input_ids"][asked] == 7777).all()
        assert torch.equal(batch["masked_targets"][asked], batch["unmasked"][asked])
        assert torch.equal(batch["input_ids"][~asked], batch["unmasked"][~asked])
        follows = (batch["targets"] != IGNORED).nonzero()[:, 1]
        assert (follows >= batch["prefix_lengths"].min()).all()
        assert batch["prefix_lengths"].any(), "some row trains the encoder"
        assert batch["prefix_lengths"][2] <= 0.8 * 54, "the last row is shorter"
        lengths += batch["prefix_lengths"][:2].tolist()
        hidden += asked[:2].sum().item()
    drawn = [n for n in lengths if n]
    assert 0.45 < len(drawn) / 800 < 0.68
    assert min(drawn) in (10, 11), "of the last row, which has 54 tokens"
    assert max(drawn) in (50, 51)
    assert hidden / sum(lengths) == pytest.approx(0.3, abs=0.02)


def test_rows_depend_on_the_generator_only() -> None:
    made = rows()
    torch.manual_seed(5)
    one, other = made.batch([1, 2]), made.batch([1, 2])
    torch.manual_seed(5)
    again = made.batch([1, 2])
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["input_ids"], other["input_ids"])


def test_mask_tokens(shared: Path) -> None:
    words = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    assert prefix_rows.mask_token(EncoderSettings(), words) == words.unk_token_id
    with pytest.raises(InputError, match="no token '<blank>'"):
        prefix_rows.mask_token(EncoderSettings(mask_token="<blank>"), words)
    with pytest.raises(InputError, match="begins, ends or pads"):
        prefix_rows.mask_token(EncoderSettings(mask_token=words.eos_token), words)
    plain = Rows(np.arange(9, dtype=np.int32), np.array([0]), 4, True)
    with pytest.raises(UsageError, match=r"data\.boundaries=false"):
        prefix_rows.build(plain, EncoderSettings(), words)


@pytest.fixture(scope="module")
def settings(shared: Path) -> recipe.Recipe:
    return recipe.load(
        "jrt",
        [
            f"base={shared / 'data' / 'models' / 'stories260K'}",
            f"data.source={shared / 'data' / 'tinystories' / 'valid.txt'}",
            "data.seq_len=64",
            "data.eval_tokens=512",
            "liger.window=16",
            f"training.tokens={16 * 4 * 64}",
            "training.batch_size=4",
        ],
    )


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_the_recipe_trains_an_encoder(settings: recipe.Recipe, save: str, tmp_path: Path) -> None:
    chosen = settings.model_copy(deep=True, update={"out": str(tmp_path / "out")})
    chosen.output.save = save
    done = linearize.convert(chosen)
    losses = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    named = [r["masked_prefix"] for r in losses if "masked_prefix" in r]
    assert sum(named[-5:]) < sum(named[:5])
    model = linearize.load(done.path)
    weights = {n: p for n, p in model.named_parameters() if ".prefix." in n}
    assert all(p.abs().max() > 0 for p in weights.values())
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        causal, encoded = (model(ids, prefix_lengths=n).logits for n in (0, 30))
    assert (encoded - causal).abs().max() > 1e-3
    assert type(model).__name__ == "LigerLlamaForCausalLM"


def test_objective_and_encoder_belong_together(settings: recipe.Recipe, tmp_path: Path) -> None:
    chosen = settings.model_copy(deep=True, update={"out": str(tmp_path / "out")})
    chosen.training.objective = {"next_token": 1.0}
    with pytest.raises(UsageError, match=r"training\.objective\.masked_prefix"):
        linearize.convert(chosen)
    chosen = settings.model_copy(deep=True, update={"out": str(tmp_path / "out")})
    chosen.liger.prefix = "none"
    with pytest.raises(UsageError, match=r"liger\.prefix=jrt"):
        linearize.convert(chosen)
    model = AutoModelForCausalLM.from_pretrained(chosen.base)
    plain = Forward(model, rows().batch([0]) | {"input_ids": torch.ones(1, 64, dtype=torch.long)})
    del plain.batch["masked_targets"]
    with pytest.raises(UsageError, match="rows with a prefix"):
        objectives.total(plain, {"masked_prefix": 1.0})
