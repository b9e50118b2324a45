"""A pretrained LM cut into prelude, core and coda: every supported family, tiny and random."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from looped_models import VOCABULARY, close, tokens
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedModel,
)

import linearize
from linearize.errors import InputError, UsageError
from linearize.recurrent_depth.conformance import check_interface
from linearize.recurrent_depth.families import FAMILIES
from linearize.recurrent_depth.retrofit import retrofit
from linearize.recurrent_depth.spec import LoopSpec

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BASES = {
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "llama, one head of keys": {"num_key_value_heads": 1, "mlp_bias": True, "attention_bias": True},
    "mistral": {"sliding_window": 5, "head_dim": 12},
    "mistral, no window": {"sliding_window": None},
    "olmo2": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen2, windows": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "qwen3": {"head_dim": 16},
}
SPEC = LoopSpec(prelude=1, core=2, coda=1, recurrences=3, backprop=2)


def base(kind: str, **changes) -> PreTrainedModel:
    """Six layers of a family with weights large enough to matter."""
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    config = AutoConfig.for_model(kind.split(",")[0], **values | BASES[kind] | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def pruned(model: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """The base without the other layers, by transformers' own means."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    small = AutoModelForCausalLM.from_config(config).eval()
    held = model.state_dict()
    for i, layer in enumerate(kept):
        prefix = f"model.layers.{layer}."
        mine = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        small.model.layers[i].load_state_dict(mine)
    rest = {k: v for k, v in held.items() if ".layers." not in k}
    assert not small.load_state_dict(rest, strict=False).unexpected_keys
    return small


def looped(kind: str = "llama", **changes) -> PreTrainedModel:
    """Retrofitted, with an adapter that looks at the state."""
    model = retrofit(base(kind, **changes), SPEC)
    with torch.no_grad():
        model.adapter.weight.add_(0.1 * torch.randn_like(model.adapter.weight))
    return model


@pytest.mark.parametrize("kind", BASES)
@torch.no_grad()
def test_one_loop_is_the_pruned_model(kind: str) -> None:
    model, ids = base(kind), tokens(2, 14)
    expected = pruned(model, [0, 3, 4, 5])(ids).logits
    changed = retrofit(model, SPEC)
    assert changed is model
    assert type(model).__name__ == f"Looped{FAMILIES[kind.split(',')[0]].name}ForCausalLM"
    for steps in (1, 4):  # the adapter does not look at the state yet
        close(model(ids, num_steps=steps).logits, expected, 1e-5)
    assert not torch.allclose(expected, base(kind)(ids).logits, atol=0.1)


@pytest.mark.parametrize("kind", BASES)
def test_the_promises_of_the_interface(kind: str) -> None:
    check_interface(looped(kind), tokens(1, 13))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2, windows", "olmo2"])
def test_batches_of_rows_padded_on_the_left(kind: str) -> None:
    model, rows = looped(kind), [tokens(1, n, seed=n)[0] for n in (9, 3, 12)]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 12 - len(row) :], mask[i, 12 - len(row) :] = row, 1
    settings = {"max_new_tokens": 8, "do_sample": False}
    got = model.generate(ids, attention_mask=mask, **settings)
    without = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    assert got.tolist() == without.tolist()
    for i, row in enumerate(rows):
        assert got[i, 12:].tolist() == model.generate(row[None], **settings)[0, len(row) :].tolist()
    packed = torch.cat([torch.arange(len(r)) for r in rows])[None]
    with torch.no_grad():
        together = model(torch.cat(rows)[None], position_ids=packed).logits[0]
        close(together, torch.cat([model(r[None]).logits[0] for r in rows]))


@pytest.mark.parametrize("kind", FAMILIES)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model, ids = looped(kind), tokens(1, 9)
    model.save_pretrained(tmp_path)
    again = linearize.load(tmp_path)
    assert type(again) is type(model)
    assert again.loop == model.loop
    assert (again.loop.recurrences, again.loop.prelude, again.backprop_depth) == (3, 1, 2)
    with torch.no_grad():
        close(again(ids).logits, model(ids).logits, 1e-6)


def test_loaded_in_a_fresh_process_and_by_its_stub(tmp_path: Path) -> None:
    model, ids = looped(), tokens(1, 5)
    model.save_pretrained(tmp_path)
    code = """
import sys
import linearize
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    print(model(torch.tensor([[int(i) for i in sys.argv[2:]]]), num_steps=5).logits[0, -1].tolist())
"""
    arguments = [sys.executable, "-c", code, str(tmp_path), *map(str, ids[0].tolist())]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    stub = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    with torch.no_grad():
        expected = model(ids, num_steps=5).logits[0, -1]
        close(stub(ids, num_steps=5).logits[0, -1], expected)
    close(torch.tensor([float(x) for x in told.strip()[1:-1].split(",")]), expected)


def test_gradient_with_and_without_checkpointing() -> None:
    model, ids = looped().train(), tokens(2, 7)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(ids, labels=ids, num_steps=(1, 2), init_scale=0).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert plain.keys() == dict(model.named_parameters()).keys()
    model.activation_checkpointing_enable()
    for name, gradient in gradients().items():
        close(gradient, plain[name], 1e-5)


def test_training_mode_draws_recurrences() -> None:
    model, ids = looped().train(), tokens(1, 6)
    found = {
        model(ids, generator=torch.Generator().manual_seed(s)).logits.sum().item() for s in range(4)
    }
    assert len(found) == 4


MISTAKES = {
    "too many layers": ({"prelude": 2, "core": 3, "coda": 2}, UsageError, "model has 6"),
    "no core": ({"core": 0}, UsageError, "core=0 must be at least 1"),
    "no number": ({"coda": "1"}, UsageError, "coda='1'"),
    "recurrences": ({"recurrences": 0}, UsageError, "recurrences=0"),
    "too many": ({"recurrences": 5000}, UsageError, "recurrences=5000 is more than the 4096"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_cuts_that_cannot_be_made(mistake: str) -> None:
    changes, kind, told = MISTAKES[mistake]
    with pytest.raises(kind, match=told):
        retrofit(base("llama"), LoopSpec(**{"prelude": 1, "core": 2, "coda": 1} | changes))


def test_models_that_cannot_be_looped() -> None:
    with pytest.raises(InputError, match="looped already"):
        retrofit(looped(), SPEC)
    with pytest.raises(InputError, match="'gpt2' cannot be looped; supported families: llama, "):
        retrofit(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)), SPEC)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=1,
        )
    ).model
    with pytest.raises(InputError, match="LlamaModel is not a causal"):
        retrofit(model, SPEC)
