"""Applying, saving, loading; packed rows; teacher and window modes; what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from models import FAMILIES, close, converted, small, tokens
from transformers import AutoModelForCausalLM, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import linearize
from linearize import LigerSpec
from linearize.errors import InputError, UsageError
from linearize.liger.modeling import attention_mode, spec_of


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_rows_equal_separate_documents(family: str) -> None:
    model = converted(family, window=8, keep_softmax=(1,))
    ids = tokens(2, 60)
    cuts = ([0, 17, 18, 60], [0, 40, 55, 60])
    positions = torch.stack(
        [torch.cat([torch.arange(b - a) for a, b in pairwise(row)]) for row in cuts]
    )
    packed = model(ids, position_ids=positions, use_cache=False).logits
    for row, at in enumerate(cuts):
        for start, end in pairwise(at):
            alone = model(ids[row : row + 1, start:end], use_cache=False).logits
            close(packed[row : row + 1, start:end], alone)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_teacher_is_the_untouched_base(family: str) -> None:
    model = small(family)
    ids = tokens(2, 50)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    positions = torch.arange(50).repeat(2, 1)
    positions[:, 30:] -= 30
    inputs = ({}, {"attention_mask": mask}, {"position_ids": positions})
    expected = [model(ids, use_cache=False, **kw).logits for kw in inputs]
    linearize.apply(model, LigerSpec(window=8, mix="fixed"))
    with attention_mode(model, "softmax"):
        for kw, logits in zip(inputs, expected, strict=True):
            real = kw.get("attention_mask", torch.ones_like(ids)).bool()
            close(model(ids, use_cache=False, **kw).logits[real], logits[real])
        with pytest.raises(UsageError, match="use_cache=False"):
            model(ids)
    assert not torch.allclose(model(ids, use_cache=False).logits, expected[0], atol=1e-2)


@torch.no_grad()
def test_learned_mix_starts_at_the_window_alone() -> None:
    ids = tokens(2, 50)
    found = [
        linearize.apply(small("llama"), LigerSpec(window=8, mix=mix))(ids).logits
        for mix in ("learned", "window")
    ]
    close(*found)
    model = converted("llama", window=8)
    with attention_mode(model, "window"):
        close(model(ids, use_cache=False).logits, found[1])


@torch.no_grad()
def test_a_window_longer_than_the_text_is_full_attention() -> None:
    model = small("qwen3")
    ids = tokens(1, 50)
    expected = model(ids).logits
    close(linearize.apply(model, LigerSpec(window=50, mix="window"))(ids).logits, expected)


@torch.no_grad()
def test_kept_layers_keep_the_bases_own_window() -> None:
    model = small("mistral", sliding_window=12)
    ids = tokens(1, 60)
    expected = model(ids, use_cache=False).logits
    linearize.apply(model, LigerSpec(window=4, keep_softmax=(0, 1)))
    close(model(ids, use_cache=False).logits, expected)
    cached = model.generate(ids, max_new_tokens=20, do_sample=False)
    plain = model.generate(ids, max_new_tokens=20, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_round_trip(family: str, tied: bool, tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": tied}
    model = converted(family, changes=changes, window=8, keep_softmax=(0,))
    ids = tokens(2, 40)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == f"liger_{family}"
    assert config["linearize"]["spec"]["keep_softmax"] == [0]
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path), linearize.load(tmp_path)):
        assert type(again) is type(model)
        assert spec_of(again.config) == spec_of(model.config)
        shared = again.lm_head.weight is again.model.embed_tokens.weight
        assert shared == tied
        assert torch.equal(again(ids).logits, model(ids).logits)
        found, expected = again.state_dict(), model.state_dict()
        assert set(found) == set(expected)


@pytest.mark.parametrize(
    "prelude",
    [
        "import linearize",
        "import transformers, linearize",
        "import transformers; transformers.AutoModelForCausalLM; import linearize",
        "import linearize; from transformers import LlamaConfig",
        "trust = True",
    ],
)
@torch.no_grad()
def test_loads_in_a_fresh_process(prelude: str, tmp_path: Path) -> None:
    model = converted("qwen2", window=8)
    model.save_pretrained(tmp_path)
    ids = tokens(1, 30)
    script = f"""
        {prelude}
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        trust = {{"trust_remote_code": True}} if "trust" in globals() else {{}}
        config = AutoConfig.from_pretrained({str(tmp_path)!r}, **trust)
        model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, **trust)
        assert type(model).__name__ == "LigerQwen2ForCausalLM", type(model)
        assert type(model).__module__ == "linearize.liger.modeling", type(model).__module__
        with torch.no_grad():
            print(model(torch.tensor({ids.tolist()})).logits.double().sum().item())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(model(ids).logits.double().sum().item(), rel=1e-6)


def test_importing_costs_nothing() -> None:
    script = (
        "import sys, linearize; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_gradient_checkpointing_trains_the_same() -> None:
    found = []
    for checkpointing in (False, True):
        model = converted("llama", window=8).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        ids = tokens(2, 40)
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        close(gradient, found[1][name], atol=1e-6)


def test_bfloat16_keeps_mix_and_state_in_float32(tmp_path: Path) -> None:
    model = converted("llama", window=8).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = linearize.load(tmp_path)
    out = again(tokens(1, 30))
    assert out.logits.dtype == torch.bfloat16
    assert again.model.layers[0].self_attn.mix.weight.dtype == torch.float32
    assert out.past_key_values.layers[0].recurrent_states[0].dtype == torch.float32


def test_unsupported_models_are_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9))
    with pytest.raises(
        InputError, match=r"'gpt2' are not supported; .*llama, mistral, .*qwen2, qwen3"
    ):
        linearize.apply(gpt2)
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    with pytest.raises(InputError, match="'bert' are not supported"):
        linearize.apply(BertModel(BertConfig(**tiny, intermediate_size=8)))
    with pytest.raises(InputError, match="load it with AutoModelForCausalLM"):
        linearize.apply(small("llama").model)
    with pytest.raises(UsageError, match="converted already"):
        linearize.apply(converted("llama"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 1}, "at least 2"),
        ({"gate": "gal"}, "did you mean 'gla'"),
        ({"mix": "fix"}, "did you mean 'fixed'"),
        ({"mix_weight": 1.5}, r"outside \[0, 1\]"),
        ({"gate_normalizer": 0}, "must be positive"),
        ({"keep_softmax": (2,)}, "the model has 2 layers"),
    ],
)
def test_impossible_specs_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        linearize.apply(small("llama"), LigerSpec(**fields))
