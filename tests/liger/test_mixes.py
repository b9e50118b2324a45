"""Mixes and sinks of a layer: names in one table, rows packed, saved, cached and by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from models import close, converted, small, tokens

import linearize
from linearize import LigerSpec
from linearize.errors import UsageError
from linearize.liger import mixes
from linearize.liger.modeling import attention_mode
from linearize.liger.spec import MIXES
from linearize.recipe import LigerSettings

SPECS = {
    "sinks": {"sinks": 3, "window": 8},
    "delayed": {"mix": "delayed", "gate": "deltanet", "window": 8},
    "joint, sinks": {"mix": "joint", "gate": "linear", "sinks": 2, "window": 8},
}


def test_every_mix_has_a_row_a_line_and_a_recipe_value() -> None:
    assert list(mixes.MIXES) == list(MIXES)
    assert list(MIXES) == list(get_args(LigerSettings.model_fields["mix"].annotation))


@torch.no_grad()
def test_sinks_and_a_window_that_meet_are_full_attention() -> None:
    model = converted("llama", mix="window", window=17, sinks=4)
    ids = tokens(2, 21)
    with attention_mode(model, "softmax"):
        teacher = model(ids, use_cache=False).logits
    close(model(ids, use_cache=False).logits, teacher)
    further = tokens(2, 22, seed=1)
    with attention_mode(model, "softmax"):
        teacher = model(further, use_cache=False).logits
    assert not torch.allclose(model(further, use_cache=False).logits, teacher, atol=1e-3)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@torch.no_grad()
def test_packed_documents_are_apart_and_files_hold_everything(spec: dict, tmp_path: Path) -> None:
    model = converted("llama", **spec)
    ids = tokens(2, 60)
    cuts = ([0, 17, 18, 60], [0, 40, 60])
    positions = torch.stack(
        [torch.cat([torch.arange(b - a) for a, b in pairwise(at)]) for at in cuts]
    )
    packed = model(ids, position_ids=positions, use_cache=False).logits
    model.save_pretrained(tmp_path)
    again = linearize.load(tmp_path)
    for row, at in enumerate(cuts):
        for start, end in pairwise(at):
            alone = again(ids[row : row + 1, start:end], use_cache=False).logits
            close(packed[row : row + 1, start:end], alone)


@pytest.mark.parametrize("sinks", [-1, 1.5, True])
def test_impossible_sinks_are_refused(sinks: object) -> None:
    with pytest.raises(UsageError, match=f"sinks={sinks!r} must be an integer"):
        linearize.apply(small("llama"), LigerSpec(sinks=sinks))
