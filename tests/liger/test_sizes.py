"""Every size is held against the published figures, or against the thing itself."""

from __future__ import annotations

import pytest
import torch
from models import as_on_an_accelerator
from peft import LoraConfig, get_peft_model
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from linearize.errors import UsageError
from linearize.liger import sizes
from linearize.liger.modeling import apply
from linearize.liger.spec import LigerSpec
from linearize.liger.state import cache_bytes

MIB = 2**20
BF16 = torch.bfloat16
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
QKV = ["q_proj", "k_proj", "v_proj"]


def small(**changes: object) -> LlamaConfig:
    values = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 24,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**values, **changes})


def converted(config: LlamaConfig, spec: LigerSpec) -> PreTrainedModel:
    torch.manual_seed(0)
    return apply(LlamaForCausalLM(config), spec)


def test_llama_3_8b() -> None:
    """Sizes in the comparison of published methods: 16 MiB + 8 MiB of 64 keys, 128 KiB a token."""
    spec = LigerSpec()
    shape = sizes.Shape.of(LLAMA_3_8B, spec)
    state = sizes.state_bytes(shape, spec, BF16)
    assert state["recurrent"] == 16 * MIB
    assert state["window"] == 8 * MIB * 63 // 64
    assert sizes.kv_bytes_per_token(shape, BF16) == 128 * 1024
    assert sizes.break_even(shape, spec, BF16) == 191
    assert sizes.base_cache_bytes(shape, 131072, BF16) == 16 * 1024 * MIB
    model = sizes.converted_model(LLAMA_3_8B, spec)
    assert sizes.parameters(model) - sizes.mix_parameters(model) == 8_030_261_248
    assert sizes.mix_parameters(model) == 32 * 32
    assert sizes.lora_parameters(model, rank=8, targets=QKV) == 4_718_592
    assert sizes.lora_parameters(model, rank=8, targets=[*QKV, "o_proj"]) == 6_815_744


def test_the_published_training_memory() -> None:
    """Liger reports 27 GB for Llama-3-8B in rows of 1,024 tokens, bfloat16, without a teacher."""
    spec = LigerSpec(mix="fixed")
    estimate = sizes.training_bytes(
        sizes.Shape.of(LLAMA_3_8B, spec),
        spec,
        total=8_030_261_248,
        adapters=4_718_592,
        batch_size=1,
        seq_len=1024,
        dtype=BF16,
        teacher=False,
    )
    assert estimate["total"] / 1e9 == pytest.approx(27, rel=0.1)


@pytest.mark.parametrize("length", [10, 40])
@pytest.mark.parametrize(
    "spec",
    [
        LigerSpec(window=16),
        LigerSpec(window=16, keep_softmax=(0, -1)),
        LigerSpec(window=16, sinks=4),
    ],
)
def test_cache_bytes_are_those_of_the_cache(spec: LigerSpec, length: int) -> None:
    config = small()
    shape = sizes.Shape.of(config, spec)
    model = converted(config, spec)
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.zeros(1, length, dtype=torch.long), past_key_values=cache)
    expected = sizes.converted_cache_bytes(shape, spec, length, torch.float32)
    assert cache_bytes(cache) == expected
    if length >= spec.window and not spec.keep_softmax:
        assert sizes.state_bytes(shape, spec, torch.float32)["total"] == expected


def test_parameter_counts_are_those_of_the_model() -> None:
    config, spec = small(), LigerSpec()
    model = converted(config, spec)
    assert sizes.parameters(sizes.base_model(config)) == sizes.parameters(LlamaForCausalLM(config))
    assert sizes.parameters(sizes.converted_model(config, spec)) == sizes.parameters(model)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=QKV))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == sizes.lora_parameters(
        sizes.converted_model(config, spec), rank=3, targets=QKV
    )


def test_an_unknown_target_suggests_the_nearest() -> None:
    model = sizes.converted_model(small(), LigerSpec())
    with pytest.raises(UsageError, match="no layer 'q_porj' here; did you mean 'q_proj'"):
        sizes.lora_parameters(model, rank=8, targets=["q_porj"])


def test_a_base_with_a_window_of_its_own() -> None:
    spec = LigerSpec()
    config = MistralConfig(num_hidden_layers=2, sliding_window=4096)
    shape = sizes.Shape.of(config, spec)
    assert sizes.base_cache_bytes(shape, 100_000, BF16) == 4095 * sizes.kv_bytes_per_token(
        shape, BF16
    )
    assert sizes.break_even(shape, spec, BF16) == 191
    narrow = sizes.Shape.of(MistralConfig(num_hidden_layers=2, sliding_window=128), spec)
    assert sizes.break_even(narrow, spec, BF16) is None
    assert sizes.break_even(narrow, LigerSpec(mix="window"), BF16) == 63


def test_an_explicit_head_size_and_no_converted_layer() -> None:
    config = Qwen3Config(
        num_hidden_layers=2, hidden_size=1024, head_dim=128, num_attention_heads=16
    )
    spec = LigerSpec(keep_softmax=(0, 1))
    shape = sizes.Shape.of(config, spec)
    assert shape.head_dim == 128
    assert sizes.break_even(shape, spec, BF16) is None
    assert sizes.state_bytes(shape, spec, BF16)["total"] == 0


CASES = {
    "float32": ({}, LigerSpec(), torch.float32, True),
    "bfloat16": ({}, LigerSpec(), BF16, True),
    "wide heads": ({"head_dim": 48, "hidden_size": 96}, LigerSpec(), torch.float32, True),
    "wide MLP": ({"intermediate_size": 1024}, LigerSpec(), BF16, True),
    "window alone": ({}, LigerSpec(mix="window"), torch.float32, True),
    "everything trained": ({}, LigerSpec(), torch.float32, False),
    "softmax kept": ({}, LigerSpec(keep_softmax=(0, 1)), torch.float32, True),
    "prefix": ({}, LigerSpec(prefix="jrt"), torch.float32, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("whole", [True, False], ids=["whole rows", "segments"])
def test_activations_are_what_autograd_saves(
    case: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whole:
        as_on_an_accelerator(monkeypatch)
    changes, spec, dtype, lora = CASES[case]
    config = small(**changes)
    model = converted(config, spec).to(dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, target_modules=QKV))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(1, 256, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", BF16, enabled=dtype == BF16),
    ):
        encoded = {} if spec.prefix == "none" else {"prefix_lengths": 128}
        model(input_ids=ids, use_cache=False, **encoded)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    estimate = sizes.training_bytes(
        sizes.Shape.of(config, spec),
        spec,
        total=0,
        adapters=int(lora),
        batch_size=1,
        seq_len=256,
        dtype=dtype,
    )
    if not whole:
        assert measured < 1.25 * estimate["activations"]
        return
    assert estimate["activations"] == pytest.approx(measured, rel=0.25), (
        estimate["activations"] / measured
    )
