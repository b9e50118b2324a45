"""How large things are: parameters, state, cache, training memory. Arithmetic only, no weights.

Letters: L layers, H query heads, Hk key/value heads, K = V = D head size, W window in keys,
E hidden size, F MLP size, b bytes per element of the model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..errors import UsageError, suggest
from ..ops.window_blocks import block_size
from . import bases, gates, mixes
from .modeling import MODELS, liger_config
from .spec import DELAYED, LigerSpec

LENGTHS = tuple(1024 * 2**i for i in range(8))  # tokens: 1k to 128k
_STATE = 4  # bytes: the recurrent state is float32 whatever the model's dtype
_LOSS_CHUNKS = 5 * 2**26  # bytes: float32 copies of a part of the logits while the loss is computed


@dataclass(frozen=True)
class Shape:
    """What the arithmetic needs of a base and a spec.

    - `mlp`: width of the MLP, or of the experts that one token is sent to, together.
    - `converted`, `kept`: indices of layers that become Liger layers, or stay softmax.
    - `own_windows`: the base's own attention window per layer in keys, None = unlimited.
    - `experts`: how many of them a token is sent to, 0 = there are none.
    - `capped`: attention scores are bounded (Gemma 2).
    """

    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    converted: tuple[int, ...]
    kept: tuple[int, ...]
    own_windows: tuple[int | None, ...]
    experts: int = 0
    capped: bool = False

    @classmethod
    def of(cls, config: PreTrainedConfig, spec: LigerSpec) -> Shape:
        """The shape of a base's config. Raises `InputError` for an unsupported family."""
        base = bases.find(config)
        heads = base.heads(config)
        layers = range(config.num_hidden_layers)
        kept = spec.softmax_layers(len(layers))
        return cls(
            hidden=config.hidden_size,
            mlp=_mlp_width(config),
            heads=heads.query,
            kv_heads=heads.key_value,
            head_dim=heads.size,
            vocabulary=config.vocab_size,
            converted=tuple(i for i in layers if i not in kept),
            kept=tuple(sorted(kept)),
            own_windows=tuple(base.own_window(config, i) for i in layers),
            experts=getattr(config, "num_experts_per_tok", 0),
            capped=bool(base.softcap and getattr(config, base.softcap)),
        )

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Keys and values of one token in one layer: 2 Hk D b."""
        return 2 * self.kv_heads * self.head_dim * dtype.itemsize


def base_model(config: PreTrainedConfig) -> nn.Module:
    """The base on the meta device: names and shapes, no weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def converted_model(config: PreTrainedConfig, spec: LigerSpec) -> nn.Module:
    """The converted model on the meta device. Raises as `liger_config` does."""
    made = liger_config(config, spec)
    with torch.device("meta"):
        return MODELS[config.model_type](made)


def parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


def mix_parameters(model: nn.Module) -> int:
    """Parameters that the conversion added, as `added_parameters` counts them."""
    added = (p for n, p in model.named_parameters() if {"mix", "prefix"} & set(n.split(".")))
    return sum(p.numel() for p in added)


def added_parameters(shape: Shape, spec: LigerSpec) -> int:
    """Per converted layer what the mix trains: H if learned or delayed, H (1 + D) if joint; and
    2 R (E + Hk D) + 2 Hk for `prefix="jrt"`."""
    mix = mixes.of(spec)
    each = shape.heads * (mix.per_head + mix.per_channel * shape.head_dim)
    if spec.prefix != "none":
        width = shape.kv_heads * shape.head_dim
        each += 2 * spec.prefix_rank * (shape.hidden + width) + 2 * shape.kv_heads
    return len(shape.converted) * each


def lora_parameters(model: nn.Module, *, rank: int, targets: Iterable[str]) -> int:
    """Parameters of LoRA adapters: rank * (in + out) per targeted linear layer.

    `targets` are matched as peft does: the end of a module's dotted name.
    Raises `UsageError` for a target that no linear layer has.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        hits = {n: m for n, m in linear.items() if n == target or n.endswith(f".{target}")}
        if not hits:
            known = {name.rpartition(".")[2] for name in linear}
            raise UsageError(f"lora.targets: no layer '{target}' here{suggest(target, known)}")
        chosen |= hits
    return sum(rank * (m.in_features + m.out_features) for m in chosen.values())


def state_bytes(shape: Shape, spec: LigerSpec, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that converted layers hold per sequence, at any length of at least W - 1 tokens.

    `recurrent` = 4 L Hk times what the gate's states hold, K V for most (none for `mix="window"`;
    with V + 1 for V for `mix="joint"`), `window` = L 2 Hk (W - 1) D b: the cache keeps the W - 1
    keys and values before the current token, or L 3 Hk W D b where the recurrence is delayed;
    `sinks` = L 2 Hk n D b. `total` is their sum.
    """
    layers = len(shape.converted)
    D, mix = shape.head_dim, mixes.of(spec)
    held = 0
    if mix.module is not None:
        held = gates.find(spec.gate).state_size(D, D + mix.mass, spec.slots)
    sizes = {
        "recurrent": layers * shape.kv_heads * held * _STATE,
        "window": layers * _window_bytes(shape, spec, spec.window, dtype),
        "sinks": layers * spec.sinks * shape.kv_bytes(dtype),
    }
    return {**sizes, "total": sum(sizes.values())}


def kv_bytes_per_token(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes by which the base's KV cache grows with each token, before any window of its own."""
    return len(shape.own_windows) * shape.kv_bytes(dtype)


def base_cache_bytes(shape: Shape, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the base's KV cache after `tokens` tokens of one sequence."""
    return _kv_bytes(shape, range(len(shape.own_windows)), tokens, dtype)


def converted_cache_bytes(shape: Shape, spec: LigerSpec, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the converted model's cache: state, window, and KV of layers kept as softmax.

    Kept layers grow without limit there, whatever window the base had.
    """
    state = state_bytes(shape, spec, dtype)
    filled = len(shape.converted) * _window_bytes(shape, spec, tokens, dtype)
    return (
        state["recurrent"]
        + state["sinks"]
        + filled
        + len(shape.kept) * tokens * shape.kv_bytes(dtype)
    )


def break_even(shape: Shape, spec: LigerSpec, dtype: torch.dtype) -> int | None:
    """Tokens from which the full converted cache is no larger than the base's; None = never.

    What is saved is linear in the tokens between the lengths at which windows of the base are full.
    """
    if not shape.converted:
        return None

    def saved(tokens: int) -> int:
        base = base_cache_bytes(shape, tokens, dtype)
        return base - converted_cache_bytes(shape, spec, tokens, dtype)

    tokens = spec.window - 1 + (spec.mix in DELAYED)
    full = sorted({w - 1 for w in shape.own_windows if w is not None and w > spec.window})
    for end in (*full, math.inf):
        lacking, gained = -saved(tokens), saved(tokens + 1) - saved(tokens)
        if lacking <= 0:
            return tokens
        if gained > 0 and tokens + math.ceil(lacking / gained) <= end:
            return tokens + math.ceil(lacking / gained)
        tokens = end
    return None


def training_bytes(
    shape: Shape,
    spec: LigerSpec,
    *,
    total: int,
    adapters: int,
    mix: int = 0,
    batch_size: int,
    seq_len: int,
    dtype: torch.dtype,
    checkpointing: bool = False,
    teacher: bool = True,
) -> dict[str, int]:
    """Estimate of the memory that training takes on one device, in bytes.

    - `total`: parameters of the converted model; `adapters`: of LoRA, 0 = everything is trained,
      in float32; `mix`: trained beside the adapters.
    - `weights`: total * b (4 if everything is trained) + adapters * 4.
    - `optimizer`: trained * (4 gradient + 8 AdamW moments).
    - `activations`: B T (L_converted a + L_kept a') with, per token and layer,
      a = 3bF + 13E + (5.25b + 8) HD + (2.3b + 30) HkD + 2.25bGW and
      a' = 3bF + 13E + 2b(HD + HkD); b(F + 2E + 2HD) more each if everything is trained. Without
      recurrence (`mix="window"`) a is a' + 2.25bGW; a prefix adds 9HD + 36HkD; each expert
      that a token is sent to adds 2bE; capped scores add 8H(W + min(W, 128)) to a, 8HT to a'. With
      checkpointing: one layer's a, and bE for each layer. The factors are fitted to what autograd
      saves of 256 tokens where rows are computed whole; on the CPU, in segments, a is little more
      than a', and kernels save less too.
    - `logits`: B T V b for each of student, gradient and `teacher`, and 320 MiB at most of float32
      copies of a part of them.
    """
    b = dtype.itemsize if adapters else 4
    heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    trained = adapters + mix if adapters else total
    kept = 3 * b * shape.mlp + 13 * shape.hidden + 2 * b * (heads + kv)
    kept += 2 * b * shape.experts * shape.hidden
    if not adapters:
        kept += b * (shape.mlp + 2 * shape.hidden + 2 * heads)
    converted = kept + 2.25 * b * (spec.window + spec.sinks) * shape.heads / shape.kv_heads
    if mixes.of(spec).module is not None:
        converted += (3.25 * b + 8) * heads + (0.3 * b + 30) * kv
    if spec.prefix != "none":
        converted += 9 * heads + 36 * kv
    if shape.capped:  # scores before and after the softmax, which no kernel recomputes
        converted += 8 * shape.heads * (spec.window + block_size(spec.window))
        kept += 8 * shape.heads * seq_len
    if checkpointing:
        layers = len(shape.own_windows)
        per_token = max(kept, converted) + layers * b * shape.hidden
    else:
        per_token = len(shape.converted) * converted + len(shape.kept) * kept
    tokens = batch_size * seq_len
    logits = tokens * shape.vocabulary
    sizes = {
        "weights": total * b + adapters * 4,
        "optimizer": trained * (4 + 8),
        "activations": round(tokens * per_token),
        "logits": logits * b * (3 if teacher else 2) + min(_LOSS_CHUNKS, logits * 4 * 5),
    }
    return {**sizes, "total": sum(sizes.values())}


def training_operations(
    model: nn.Module,
    *,
    tokens: int,
    everything: bool,
    teacher: bool,
    checkpointing: bool = False,
) -> int:
    """Operations of a training run in products with weights, two per multiplication and addition.

    2 N per token and pass, N the weights that a token meets: of linear layers, and of the experts
    that it is sent to. Passes: forward, gradients of activations, with `everything` trained those
    of weights, the `teacher`'s forward, with `checkpointing` the forward again. Attention itself
    is left out: a few hundredths at rows of 2,048 tokens.
    """
    passes = 2 + everything + teacher + checkpointing
    chosen = getattr(model.config, "num_experts_per_tok", None)
    met = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    if chosen:  # the experts of a layer are one tensor [experts, out, in]
        stacked = (p for p in model.parameters() if p.ndim == 3)
        met += sum(chosen * p[0].numel() for p in stacked)
    return 2 * met * passes * tokens


def _mlp_width(config: PreTrainedConfig) -> int:
    """Channels that a token passes through: of the experts it is sent to, if there are any."""
    dense, chosen = config.intermediate_size, getattr(config, "num_experts_per_tok", None)
    if chosen is None:
        return dense
    sparse = chosen * getattr(config, "moe_intermediate_size", dense)
    return max(sparse, dense) if getattr(config, "mlp_only_layers", None) else sparse


def _window_bytes(shape: Shape, spec: LigerSpec, tokens: int, dtype: torch.dtype) -> int:
    """What a converted layer's cache holds of the last tokens, of `tokens` so far."""
    each = shape.kv_bytes(dtype)
    if spec.mix in DELAYED:
        return min(tokens, spec.window) * (each + each // 2)
    return min(tokens, spec.window - 1) * each


def _kv_bytes(shape: Shape, layers: Iterable[int], tokens: int, dtype: torch.dtype) -> int:
    windows = (shape.own_windows[i] for i in layers)
    held = sum(tokens if w is None else min(tokens, w - 1) for w in windows)
    return held * shape.kv_bytes(dtype)
