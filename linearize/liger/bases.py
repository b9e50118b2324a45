"""Where attention sits in each supported base family, and its quirks. One row per family."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, suggest

if TYPE_CHECKING:  # `import linearize` registers these names without importing torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

PREFIX = "liger_"  # of the model_type of converted models


class Heads(NamedTuple):
    """H, Hk and D of a config."""

    query: int
    key_value: int
    size: int


def _no_window(config: PreTrainedConfig, layer: int) -> int | None:
    return None


def _one_window(config: PreTrainedConfig, layer: int) -> int | None:
    return getattr(config, "sliding_window", None)


def _window_by_type(config: PreTrainedConfig, layer: int) -> int | None:
    sliding = config.layer_types[layer] == "sliding_attention"
    return config.sliding_window if sliding else None


def _apart(attention: nn.Module, x: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    return tuple(layer(x).unflatten(-1, (-1, heads.size)) for layer in layers)


def _joined(attention: nn.Module, x: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    widths = [n * heads.size for n in (heads.query, heads.key_value, heads.key_value)]
    parts = attention.qkv_proj(x).split(widths, -1)
    return tuple(part.unflatten(-1, (-1, heads.size)) for part in parts)


def _joined_by_head(attention: nn.Module, x: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    return attention.query_key_value(x).unflatten(-1, (heads.query, -1)).chunk(3, -1)


def _no_norm(attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q, k


def _norm_of_head(attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return attention.q_norm(q), attention.k_norm(k)


def _norm_of_all(attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return attention.q_norm(q.flatten(2)).view_as(q), attention.k_norm(k.flatten(2)).view_as(k)


def _norm_per_head(attention: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    if not attention.qk_layernorm:
        return q, k
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return attention.q_layernorm(q).transpose(1, 2), attention.k_layernorm(k).transpose(1, 2)


@dataclass(frozen=True)
class Base:
    """What differs between families. Everything outside attention stays the family's own.

    - `model_type`: of the base's config; `name`: prefix of its classes in transformers.
    - `folder`, `config`: of the modeling module and the config class, where they are not named
      after `model_type` and `name`.
    - `own_window`: (config, layer) -> the base's own attention window in keys, None = unlimited.
    - `masks_by_layer_type`: the decoder looks its masks up in a dict keyed by layer type;
      `rotary_by_layer_type`: its rotary embeddings as well.
    - `drops_keywords`: its layers hand on to attention only what they know.
    - `config_changes`: what the converted config needs besides layer types and window.
    - `attention`, `output`: names of the attention in a layer, and of its output projection.
    - `projection`: (attention, x, heads) -> q [B, T, H, D], k and v [B, T, Hk, D].
    - `norm`: (attention, q, k) -> q and k after the norms that belong to the projection.
    - `softcap`: field of the config with the bound c on scores, c tanh(s / c); "" = unbounded.
    - `own_names`: usual name of a projection -> the layer that holds it here.
    - `loops`: whether `linearize loop` can cut it, too.
    """

    model_type: str
    name: str
    folder: str = ""
    config: str = ""
    own_window: Callable[[PreTrainedConfig, int], int | None] = _no_window
    masks_by_layer_type: bool = False
    rotary_by_layer_type: bool = False
    drops_keywords: bool = False
    config_changes: dict[str, Any] = field(default_factory=dict)
    attention: str = "self_attn"
    output: str = "o_proj"
    projection: Callable[[nn.Module, Tensor, Heads], tuple[Tensor, ...]] = _apart
    norm: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]] = _no_norm
    softcap: str = ""
    own_names: dict[str, str] = field(default_factory=dict)
    loops: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _row, (self.model_type,)  # models are copied, rows are not

    @functools.cached_property  # every layer asks for it in every step
    def modeling(self) -> Any:
        """The family's modeling module in transformers."""
        folder = self.folder or self.model_type
        return importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """Configuration class of the base."""
        folder = self.folder or self.model_type
        module = f"transformers.models.{folder}.configuration_{folder}"
        return getattr(importlib.import_module(module), self.config or f"{self.name}Config")

    def heads(self, config: PreTrainedConfig) -> Heads:
        """Heads of queries, heads of keys and values, and their size."""
        query = config.num_attention_heads
        return Heads(
            query,
            getattr(config, "num_key_value_heads", None) or query,
            getattr(config, "head_dim", None) or config.hidden_size // query,
        )

    def attentions(self, model: nn.Module) -> list[nn.Module]:
        """The attention module of each layer of a causal LM of this family."""
        return [getattr(layer, self.attention) for layer in model.get_decoder().layers]

    def project(self, attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, E] -> q [B, T, H, K], k and v [B, T, Hk, *], before rotary embedding.

        Biases belong to the projection, and so do norms of queries and keys.
        """
        q, k, v = self.projection(attention, x, self.heads(attention.config))
        return *self.norm(attention, q, k), v

    def rotate(
        self, attention: nn.Module, q: Tensor, k: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Rotary embedding of q and k [B, T, H, K] with the base's own (cos, sin).

        Channels beyond the width of cos and sin stay as they are (partial rotary), and so do all
        in a layer without positions (SmolLM3).
        """
        if not getattr(attention, "use_rope", True):
            return q, k
        width = rotary[0].shape[-1]
        turned = self.modeling.apply_rotary_pos_emb(
            q[..., :width], k[..., :width], *rotary, unsqueeze_dim=2
        )
        if width == q.shape[-1]:
            return turned
        import torch  # loaded by now, unlike when this table is read

        left = (torch.cat([x, y[..., width:]], -1) for x, y in zip(turned, (q, k), strict=True))
        return tuple(left)

    def refusals(self, config: PreTrainedConfig) -> list[str]:
        """Reasons why a model with this config cannot be converted; empty = it can."""
        reasons = []
        for name, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
            value = getattr(config, name, None)
            if value is not None and value != causal:
                reasons.append(f"its attention is bidirectional ({name}: {str(value).lower()})")
        if getattr(config, "is_heterogeneous", False):
            reasons.append("its layers differ in shape (per_layer_config)")
        return reasons


# Without use_sliding_window these configs drop the window's length.
_KEEPS_WINDOW = {"use_sliding_window": True}
_BY_TYPE = {"own_window": _window_by_type, "masks_by_layer_type": True}
_QWEN = {**_BY_TYPE, "config_changes": _KEEPS_WINDOW, "loops": True}
_QKV = ("q_proj", "k_proj", "v_proj")

BASES = {
    base.model_type: base
    for base in (
        Base("gemma2", "Gemma2", **_BY_TYPE, softcap="attn_logit_softcapping"),
        Base(
            "gemma3_text",
            "Gemma3",
            folder="gemma3",
            config="Gemma3TextConfig",
            **_BY_TYPE,
            rotary_by_layer_type=True,
            norm=_norm_of_head,
        ),
        Base(
            "gpt_neox",
            "GPTNeoX",
            attention="attention",
            output="dense",
            projection=_joined_by_head,
            own_names={**dict.fromkeys(_QKV, "query_key_value"), "o_proj": "dense"},
        ),
        Base("granite", "Granite"),
        Base("llama", "Llama", loops=True),
        Base("mistral", "Mistral", own_window=_one_window, loops=True),
        Base("mixtral", "Mixtral", own_window=_one_window),
        Base("olmo2", "Olmo2", norm=_norm_of_all, loops=True),
        Base(
            "phi3",
            "Phi3",
            own_window=_one_window,
            projection=_joined,
            own_names=dict.fromkeys(_QKV, "qkv_proj"),
        ),
        Base("qwen2", "Qwen2", **_QWEN),
        Base("qwen3", "Qwen3", **_QWEN, norm=_norm_of_head),
        Base(
            "qwen3_moe",
            "Qwen3Moe",
            own_window=_one_window,
            config_changes=_KEEPS_WINDOW,
            norm=_norm_of_head,
        ),
        Base("smollm3", "SmolLM3", **_BY_TYPE),
        Base("stablelm", "StableLm", drops_keywords=True, norm=_norm_per_head),
    )
}

_LATENT = "its keys and values are rebuilt from one compressed vector (latent attention)"
_ALIBI = "its positions are a bias on the scores (ALiBi), without end and unlike any window"
_RECURRENT = "it is recurrent already"
_IMPOSSIBLE = {
    "bloom": _ALIBI,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "falcon_mamba": _RECURRENT,
    "gemma3": "it reads images too; convert its text model by itself (gemma3_text)",
    "gpt_oss": "its softmax has a trained sink per head, which the window has not",
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "mpt": _ALIBI,
    "recurrent_gemma": _RECURRENT,
    "rwkv": _RECURRENT,
}


def _row(model_type: str) -> Base:
    return BASES[model_type]


def supported() -> list[str]:
    """Names (`model_type`) of the families that can be converted."""
    return sorted(BASES)


def find(config: PreTrainedConfig) -> Base:
    """The row for a base's config. Raises `InputError` naming the supported families."""
    name = config.model_type
    if name not in BASES:
        near = suggest(name, BASES) if name else ""
        remedy = near if "did you mean" in near else ""
        if name in _IMPOSSIBLE:
            remedy = f": {_IMPOSSIBLE[name]}"
        raise InputError(
            f"models of type '{name}' are not supported{remedy}; "
            f"supported base families: {', '.join(supported())}"
        )
    return BASES[name]


def lora_targets(model_type: str, targets: Iterable[str]) -> list[str]:
    """What the usual names of projections mean in a model, converted or not.

    In a family that computes queries, keys and values by one layer, each of the three means it.
    Other names, and other families, are left as they are.
    """
    base = BASES.get(model_type.removeprefix(PREFIX))
    own = base.own_names if base else {}
    return list(dict.fromkeys(own.get(name, name) for name in targets))
