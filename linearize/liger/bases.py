"""Where attention sits in each supported base family, and its quirks. One row per family."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError, suggest

if TYPE_CHECKING:  # `import linearize` registers these names without importing torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

PREFIX = "liger_"  # of the model_type of converted models


def _no_window(config: PreTrainedConfig, layer: int) -> int | None:
    return None


def _one_window(config: PreTrainedConfig, layer: int) -> int | None:
    return getattr(config, "sliding_window", None)


def _window_by_type(config: PreTrainedConfig, layer: int) -> int | None:
    sliding = config.layer_types[layer] == "sliding_attention"
    return config.sliding_window if sliding else None


@dataclass(frozen=True)
class Base:
    """What differs between families.

    - `model_type`: of the base's config; `name`: prefix of its classes in transformers.
    - `own_window`: (config, layer) -> the base's own attention window in keys, None = unlimited.
    - `masks_by_layer_type`: the decoder looks its masks up in a dict keyed by layer type.
    - `config_changes`: what the converted config needs besides layer types and window.
    """

    model_type: str
    name: str
    own_window: Callable[[PreTrainedConfig, int], int | None] = _no_window
    masks_by_layer_type: bool = False
    config_changes: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property  # every layer asks for it in every step
    def modeling(self) -> Any:
        """The family's modeling module in transformers."""
        return importlib.import_module(
            f"transformers.models.{self.model_type}.modeling_{self.model_type}"
        )

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """Configuration class of the base."""
        module = f"transformers.models.{self.model_type}.configuration_{self.model_type}"
        return getattr(importlib.import_module(module), f"{self.name}Config")

    def attentions(self, model: nn.Module) -> list[nn.Module]:
        """The attention module of each layer of a causal LM of this family."""
        return [layer.self_attn for layer in model.model.layers]

    def project(self, attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, E] -> q [B, T, H, K], k and v [B, T, Hk, *], before rotary embedding.

        Biases belong to the projection, and so do per-head norms (Qwen3).
        """
        shape = (*x.shape[:-1], -1, attention.head_dim)
        q = attention.q_proj(x).view(shape)
        k = attention.k_proj(x).view(shape)
        v = attention.v_proj(x).view(shape)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        return q, k, v

    def rotate(self, q: Tensor, k: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rotary embedding of q and k [B, T, H, K] with the base's own (cos, sin)."""
        return self.modeling.apply_rotary_pos_emb(q, k, *rotary, unsqueeze_dim=2)

    def refusals(self, config: PreTrainedConfig) -> list[str]:
        """Reasons why a model with this config cannot be converted; empty = it can."""
        if getattr(config, "is_causal", True) is False:
            return ["its attention is bidirectional (is_causal: false)"]
        return []


# Without use_sliding_window these configs drop the window's length.
QWEN = {
    "own_window": _window_by_type,
    "masks_by_layer_type": True,
    "config_changes": {"use_sliding_window": True},
}

BASES = {
    base.model_type: base
    for base in (
        Base("llama", "Llama"),
        Base("mistral", "Mistral", own_window=_one_window),
        Base("qwen2", "Qwen2", **QWEN),
        Base("qwen3", "Qwen3", **QWEN),
    )
}


def supported() -> list[str]:
    """Names (`model_type`) of the families that can be converted."""
    return sorted(BASES)


def find(config: PreTrainedConfig) -> Base:
    """The row for a base's config. Raises `InputError` naming the supported families."""
    name = config.model_type
    if name not in BASES:
        near = suggest(name, BASES) if name else ""
        remedy = near if "did you mean" in near else ""
        raise InputError(
            f"models of type '{name}' are not supported{remedy}; "
            f"supported base families: {', '.join(supported())}"
        )
    return BASES[name]
