"""Checkpoints: published names, head tied or stored, what is missing or left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from looped_models import close, small, tokens
from safetensors.torch import load_file, save_file

import linearize
from linearize.errors import InputError
from linearize.recurrent_depth.model import RavenConfig, RavenForCausalLM

FRESH = """
import sys, torch
from transformers import AutoModelForCausalLM
for where, trust in ((sys.argv[1], True), (sys.argv[2], False)):  # the first needs no import
    if not trust:
        import linearize
    model = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=trust)
    held = torch.load(where + "/held.pt")
    # Not bitwise: another process may add up in another order (threads, memory alignment).
    torch.testing.assert_close(model(held["ids"], num_steps=3).logits, held["logits"])
    print(type(model).__name__, model.dtype)
"""


def test_round_trip_in_a_fresh_process(tmp_path: Path) -> None:
    ids = tokens(1, 6)
    for tied in (True, False):
        model, where = small(tie_embeddings=tied), tmp_path / ("tied" if tied else "untied")
        model.save_pretrained(where)
        logits = model(ids, num_steps=3).logits.detach()
        torch.save({"ids": ids, "logits": logits}, where / "held.pt")
        assert ("lm_head.weight" in load_file(where / "model.safetensors")) is not tied
        stored = json.loads((where / "config.json").read_text())
        assert stored["tie_embeddings"] is tied
        assert "tie_word_embeddings" not in stored  # the released code refuses both together
    ended = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "tied"), str(tmp_path / "untied")],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["RavenForCausalLM torch.float32"] * 2


def test_the_released_extras_are_ignored(tmp_path: Path) -> None:
    """A table of rotary angles, and a copy of the tied head."""
    model, ids = small(), tokens(1, 6)
    file = _saved(model, tmp_path)
    tensors = load_file(file)
    tensors["freqs_cis"] = torch.zeros(1, 128, 1, 4, 2)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    loaded = linearize.load(tmp_path)
    close(loaded(ids).logits, model(ids).logits, 0)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("transformer.adapter.weight"), "1 missing.*transformer.adapter.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), "1 not part of the model.*extra"),
        (
            lambda t: t.update({"transformer.ln_f.weight": torch.zeros(7)}),
            "1 of another shape.*transformer.ln_f.weight",
        ),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path: Path, change, told: str) -> None:
    file = _saved(small(), tmp_path)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=told):
        linearize.load(tmp_path)


def test_names_and_sizes_of_the_published_model() -> None:
    """3,564,976,800 parameters with the tied head, 395,398,080 in a block."""
    with torch.device("meta"):
        model = RavenForCausalLM(RavenConfig())
    assert sum(p.numel() for p in model.parameters()) == 3_564_976_800
    block = model.transformer.core_block[3]
    assert sum(p.numel() for p in block.parameters()) == 395_398_080
    assert block.attn.qk_bias.shape == (2, 1, 55, 96)
    assert model.config.effective_expected_depth == 132
    assert model.config.init_values["std"] == pytest.approx(0.0087039, abs=1e-7)
    assert model.config.init_values["out_proj"] == pytest.approx(5.3569e-4, abs=1e-8)


def test_initialisation_follows_the_config() -> None:
    torch.manual_seed(0)
    model = RavenForCausalLM(RavenConfig(**small().config.to_dict() | {"init_values": None}))
    values, block = model.config.init_values, model.transformer.core_block[0]
    for weight, std in [
        (model.transformer.wte.weight, values["embedding"]),
        (block.attn.Wqkv.weight, values["std"]),
        (block.attn.proj.weight, values["out_proj"]),
        (block.mlp.proj.weight, values["out_proj"]),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.15)
    assert not block.attn.qk_bias.any()


def _saved(model: RavenForCausalLM, path: Path) -> Path:
    model.save_pretrained(path)
    return path / "model.safetensors"
