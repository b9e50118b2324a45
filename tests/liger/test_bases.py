"""Every base family with what is peculiar to it: applied, trained, saved, loaded, decoded."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from models import as_on_an_accelerator, close, small, tokens
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

import linearize
from linearize import LigerSpec, inspection, recipe
from linearize.errors import InputError
from linearize.liger import bases, sizes
from linearize.liger.modeling import attention_mode
from linearize.liger.state import cache_bytes

SLIDING, FULL = "sliding_attention", "full_attention"
# What sets a family apart, with its own windows shorter than the texts below.
CASES = {
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 1.5},
    "gemma2, no cap": {"attn_logit_softcapping": None, "attention_bias": True},
    "gemma3_text": {
        "sliding_window": 5,
        "layer_types": [SLIDING, FULL, SLIDING],
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            FULL: {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 8.0},
        },
        "head_dim": 12,
    },
    "gpt_neox": {"rotary_pct": 0.5, "num_key_value_heads": None},
    "gpt_neox, in sequence": {"use_parallel_residual": False, "num_key_value_heads": None},
    "granite": {
        "attention_multiplier": 0.1,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "attention_bias": True,
    },
    "llama": {"attention_bias": True, "head_dim": 12},
    "mistral": {"sliding_window": 5},
    "mixtral": {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "phi3": {"sliding_window": 5, "partial_rotary_factor": 0.5},
    "phi3, longrope": {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [1.0, 3.0, 6.0, 9.0],
        },
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 12},
    "qwen3_moe": {
        "head_dim": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        "sliding_window": 5,
    },
    "smollm3": {
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": [SLIDING, FULL, FULL],
    },
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "qk_layernorm": True},
    "stablelm, parallel": {"use_parallel_residual": True},
}
LONG = LigerSpec(window=64, mix="window")  # longer than any text below
T = 40


def base(case: str) -> PreTrainedModel:
    """Three layers, norms and biases away from where they start."""
    model = small(case.split(",")[0], num_hidden_layers=3, **CASES[case])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "gemma" in case:
                parameter.div_(3)  # embeddings are scaled as well, and heads would saturate
    return model


def converted(case: str, **spec) -> PreTrainedModel:
    return linearize.apply(base(case), LigerSpec(**{"window": 8, "mix": "fixed"} | spec))


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokens(3, T), torch.ones(3, T, dtype=torch.long)
    mask[0, :25], mask[1, :3] = 0, 0
    return ids.where(mask.bool(), 0), mask


def test_every_family_is_covered() -> None:
    assert {case.split(",")[0] for case in CASES} == set(bases.BASES)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_window_longer_than_the_text_is_the_base(case: str) -> None:
    model, (ids, mask) = base(case), padded()
    real = mask.bool()
    expected = model(ids, attention_mask=mask, use_cache=False).logits[real]
    alone = model(ids[2:], use_cache=False).logits
    assert alone.std() > 0.1
    linearize.apply(model, LONG)
    close(model(ids, attention_mask=mask, use_cache=False).logits[real], expected)
    close(model(ids[2:]).logits, alone)
    with attention_mode(model, "softmax"):
        close(model(ids, attention_mask=mask, use_cache=False).logits[real], expected)
        close(model(ids[2:], use_cache=False).logits, alone)
    kept = linearize.apply(base(case), LigerSpec(window=4, keep_softmax=(0, 1, 2)))
    close(kept(ids, attention_mask=mask).logits[real], expected)
    shorter = linearize.apply(base(case), LigerSpec(window=4, mix="window"))
    assert not torch.allclose(shorter(ids[2:]).logits, alone, atol=1e-2)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_cache_and_batches_change_nothing(case: str) -> None:
    model, (ids, mask) = copy.deepcopy(converted(case, keep_softmax=(1,))), padded()
    if "longrope" in case:
        ids, mask = ids[:, -15:], mask[:, -15:]  # its embedding changes beyond 16 tokens
        mask[0, :6] = 0
    length = ids.shape[1]
    real = mask.bool()
    full = model(ids, attention_mask=mask, use_cache=False).logits
    cache, pieces = DynamicCache(config=model.config), []
    for start, end in ((0, 9), (9, 10), (10, 11), (11, length - 1), (length - 1, length)):
        seen = {"attention_mask": mask[:, :end], "past_key_values": cache}
        pieces.append(model(ids[:, start:end], **seen).logits)
    close(torch.cat(pieces, 1)[real], full[real])
    for row in range(3):
        close(full[row, real[row]], model(ids[row, real[row]][None]).logits[0])
    positions = torch.cat([torch.arange(9), torch.arange(length - 9)])[None]
    packed = model(ids[2:], position_ids=positions, use_cache=False).logits
    for part in (slice(9), slice(9, length)):
        close(packed[:, part], model(ids[2:, part]).logits)
    how = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    plain = model.generate(ids, use_cache=False, **how)
    assert torch.equal(model.generate(ids, **how), plain)
    assert torch.equal(model.generate(ids, cache_implementation="static", **how), plain)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Each family after one step on adapters with the default targets: where, and its logits."""
    made = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("bases") / case.replace(", ", "-")
        base(case).save_pretrained(folder / "base")
        loaded = AutoModelForCausalLM.from_pretrained(folder / "base")
        spec = LigerSpec(window=8, mix="learned", keep_softmax=(1,))
        model = linearize.apply(loaded, spec)
        layers = {n for n, m in model.named_modules() if hasattr(m, "mix")}
        targets = bases.lora_targets(model.config.model_type, recipe.LoraSettings().targets)
        adapted = get_peft_model(
            model, LoraConfig(r=2, target_modules=targets, modules_to_save=["mix"])
        )
        ids = tokens(2, T)
        optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.1)
        loss = adapted(ids, labels=ids, use_cache=False).loss
        loss.backward()
        moved = {n for n, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
        for layer in layers:
            held = [n for n in moved if f"{layer}." in n]
            assert len(held) == 1 + len(targets), (case, held)  # lora_A waits for lora_B
        optimizer.step()
        whole = adapted.merge_and_unload().eval()
        whole.save_pretrained(folder)
        with torch.no_grad():
            assert whole(ids, labels=ids).loss < loss, case
            made[case] = folder, whole(ids).logits
    return made


@pytest.mark.parametrize("case", ["gemma2", "gemma3_text", "gpt_neox", "mixtral", "stablelm"])
def test_gradient_checkpointing_reaches_the_layer(case: str) -> None:
    """Families whose layers hand keywords down in a way of their own."""
    model, ids, found = converted(case).train(), tokens(2, T), []
    for _ in range(2):
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
        model.activation_checkpointing_enable()
    for name, gradient in found[0].items():
        close(gradient, found[1][name], atol=1e-5)


@torch.no_grad()
def test_every_family_trains_and_loads_here(trained) -> None:
    for case, (folder, logits) in trained.items():
        again = linearize.load(folder)
        assert type(again).__name__ == f"Liger{bases.BASES[case.split(',')[0]].name}ForCausalLM"
        close(again(tokens(2, T)).logits, logits)
        half = linearize.load(folder, dtype=torch.bfloat16)
        assert half(tokens(2, T)).logits.dtype == torch.bfloat16


def test_every_family_loads_in_a_fresh_process(trained) -> None:
    folders = {case: str(folder) for case, (folder, _) in trained.items()}
    script = f"""
        import json, linearize, torch
        from transformers import AutoModelForCausalLM
        ids, sums = torch.tensor({tokens(2, T).tolist()}), {{}}
        for case, folder in {folders!r}.items():
            with torch.no_grad():
                logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
            sums[case] = logits.double().abs().sum().item()
        print(json.dumps(sums))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = {case: held.double().abs().sum().item() for case, (_, held) in trained.items()}
    assert json.loads(done.stdout) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_inspect_tells_the_sizes(case: str, tmp_path: Path) -> None:
    model = base(case)
    model.save_pretrained(tmp_path)
    spec = LigerSpec(window=8)
    told = inspection.inspect(str(tmp_path), spec)
    assert told["convertible"], told["reasons"]
    assert told["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    config, shape = model.config, sizes.Shape.of(model.config, spec)
    ids = tokens(1, 600)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        own = sum(x.numel() * 4 for layer in cache.layers for x in (layer.keys, layer.values))
        assert sizes.base_cache_bytes(shape, 600, torch.float32) == own
        changed = linearize.apply(model, spec)
        cache = DynamicCache(config=changed.config)
        changed(ids, past_key_values=cache)
    assert cache_bytes(cache) == told["state_bytes"]["total"]
    state = told["state_bytes"]["total"]
    smaller = (
        n for n in range(7, 2000) if sizes.base_cache_bytes(shape, n, torch.float32) >= state
    )
    assert told["break_even_tokens"] == next(smaller, None)
    changed.save_pretrained(tmp_path / "changed")
    again = inspection.inspect(str(tmp_path / "changed"))
    assert again["state_bytes"] == told["state_bytes"]
    assert again["memory"] == told["memory"]


@pytest.mark.parametrize("kept", [(), (0, 1, 2)])
@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_activations_are_what_autograd_saves(
    family: str, kept: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_an_accelerator(monkeypatch)
    changes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8}
    changes |= {"num_key_value_heads": 4, "head_dim": 16, "num_hidden_layers": 3}
    if family == "mixtral":
        changes |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    model, spec = small(family, **changes), LigerSpec(keep_softmax=kept)
    shape = sizes.Shape.of(model.config, spec)
    targets = bases.lora_targets(family, recipe.LoraSettings().targets)
    model = get_peft_model(linearize.apply(model, spec), LoraConfig(r=8, target_modules=targets))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(tokens(1, 256), use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    run = {"batch_size": 1, "seq_len": 256, "dtype": torch.float32}
    estimate = sizes.training_bytes(shape, spec, total=0, adapters=1, **run)["activations"]
    assert estimate == pytest.approx(measured, rel=0.25), estimate / measured


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention is bidirectional"),
        ("gemma2", {"use_bidirectional_attention": True}, "attention is bidirectional"),
        ("gemma3", {}, "convert its text model by itself"),
        ("gpt_oss", {}, "a trained sink per head"),
        ("deepseek_v3", {}, "one compressed vector"),
        ("bloom", {}, "ALiBi"),
        ("mamba", {}, "recurrent already"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    family: str, changes: dict, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        sizes.converted_model(AutoConfig.for_model(family, **changes), LigerSpec())


def test_names_of_lora_targets() -> None:
    usual = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
    assert bases.lora_targets("llama", usual) == usual
    assert bases.lora_targets("unknown", usual) == usual
    assert bases.lora_targets("liger_phi3", usual) == ["qkv_proj", "o_proj", "up_proj"]
    assert bases.lora_targets("gpt_neox", usual) == ["query_key_value", "dense", "up_proj"]
