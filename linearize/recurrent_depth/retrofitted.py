"""Looped models made of a pretrained LM: the layers are the base's own, their attention is placed.

The stock layers keep norms, projections, positions and MLP; they call the attention function
registered here, which sees what the `Placement` says. One thin class per family.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init

from ..errors import UsageError
from ..liger.attention import LigerAttention
from ..liger.bases import Base
from ..liger.mixes import Mixing
from ..liger.modeling import swap_attention
from .cache import CachedPlacement, RecurrentDepthCache
from .families import FAMILIES, PREFIX
from .interface import LoopFacts
from .looped import LoopedCausalLM
from .placement import Placement
from .sharing import Sharing
from .spec import LoopSpec
from .stateful import StatefulDepthCache, layout_of

ATTENTION = "linearize_looped"  # name under which placed attention is registered


class Adapter(nn.Linear):
    """[z; e] -> the core's input, 2h -> h without bias. Starts as [0 | I]: e passes, z is unseen.

    One recurrence is then exactly the pruned model (arXiv 2511.07384 leaves the choice open).
    """

    def __init__(self, width: int, **where: Any) -> None:
        super().__init__(2 * width, width, bias=False, **where)

    def reset_parameters(self) -> None:
        width, where = self.out_features, {"device": self.weight.device, "dtype": self.weight.dtype}
        unseen, through = torch.zeros(width, width, **where), torch.eye(width, **where)
        init.copy_(self.weight, torch.cat([unseen, through], 1))


class RetrofittedCausalLM(LoopedCausalLM):
    """e = prelude(embedding); z = core(A [z; e]) r times; logits = head(norm(coda(z))).

    Unlike Huginn there is no norm before the coda: the base has none there. Layers with Liger
    attention have recurrent states, one per layer and recurrence.
    """

    spec: LoopSpec  # the cut, as the config holds it
    _keep_in_fp32_modules_strict = ("mix",)

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        start(self)

    @property
    def loop(self) -> LoopFacts:
        config, spec = self.config, self.spec
        return LoopFacts(
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            context=config.max_position_embeddings,
            recurrences=spec.recurrences,
            prelude=spec.prelude,
            core=spec.core,
            coda=spec.coda,
            stateful=self._is_stateful,
        )

    @property
    def backprop_depth(self) -> int:
        return self.spec.backprop

    @property
    def state_std(self) -> float:
        return math.sqrt(2 / 5)  # Huginn's: the base has no opinion

    def new_cache(
        self, *, sharing: Sharing | str | int | None = None, max_length: int | None = None
    ) -> RecurrentDepthCache:
        if not self._is_stateful:
            return super().new_cache(sharing=sharing, max_length=max_length)
        spec = self.spec
        return StatefulDepthCache(
            self.config,
            prelude=spec.prelude,
            core=spec.core,
            coda=spec.coda,
            sharing=sharing,
            max_length=max_length,
        )

    def prelude(self, x: Tensor, place: Placement) -> Tensor:
        return self._run(x, place, "prelude")

    def core(self, z: Tensor, e: Tensor, place: Placement, step: int) -> Tensor:
        return self._run(self.adapter(torch.cat([z, e], -1)), place, "core", step)

    def coda(self, z: Tensor, place: Placement, logits_to_keep: int = 0) -> Tensor:
        x = self._run(z, place, "coda")
        if logits_to_keep:
            x = place.spread(x, logits_to_keep)
        return self.lm_head(self.model.norm(x)).float()

    def _run(self, x: Tensor, place: Placement, part: str, step: int = 0) -> Tensor:
        def angles() -> tuple[Tensor, Tensor]:
            return self.model.rotary_emb(x, place.positions)

        rotary = place.once("rotary", angles)
        spec = self.spec
        first = {"prelude": 0, "core": spec.prelude, "coda": spec.prelude + spec.core}[part]
        for i in range(getattr(spec, part)):
            layer = self.model.layers[first + i]
            more = self._state(layer.self_attn, place, step) if self._is_stateful else {}
            x = layer(
                x,
                position_embeddings=rotary,
                place=place,
                part=part,
                layer=i,
                step=step,
                **more,
            )
        return x

    def _state(self, attention: nn.Module, place: Placement, step: int) -> dict[str, Any]:
        """What Liger attention needs besides its placement."""
        if not isinstance(attention, LigerAttention):
            return {}
        layout = layout_of(place)
        if not isinstance(place, CachedPlacement):
            return {"layout": layout}
        states = place.cache.states_at(step)
        seen = states.layers[attention.layer_idx].get_seq_length()
        if seen != layout.past:
            raise UsageError(
                f"the recurrent state of recurrence {step + 1} has read {seen} places and "
                f"{layout.past} came before; give every token once, and all the same num_steps"
            )
        return {"layout": layout, "past_key_values": states}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Adapter):
            module.reset_parameters()
        elif isinstance(module, Mixing):
            module.reset()
        else:
            super()._init_weights(module)


def start(model: PreTrainedModel) -> None:
    """What a model of the right layers lacks: the adapter, and attention by placement."""
    weight = model.get_input_embeddings().weight
    model.spec = LoopSpec.from_dict(model.config.linearize["loop"])
    model.adapter = Adapter(model.config.hidden_size, device=weight.device, dtype=weight.dtype)
    model._is_stateful = "spec" in model.config.linearize
    model._packs = not model._is_stateful
    if model._is_stateful:
        swap_attention(model)
    model.config._attn_implementation = ATTENTION


def placed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    place: Placement,
    part: str,
    layer: int,
    step: int,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: q [B, H, W, D], k and v [B, Hk, W, D] -> [B, W, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    window = getattr(module, "own_window", sliding_window)  # of a layer beside converted ones
    return place.attend(q, k, v, part, layer, step, window=window), None


def _classes(base: Base) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The looped config and model class of one family, registered with the Auto classes."""
    name = f"Looped{base.name}"
    common = {"__module__": __name__}
    config = type(
        f"{name}Config",
        (base.config_class,),
        {**common, "model_type": PREFIX + base.model_type, "__annotations__": {}},
    )
    stock = getattr(base.modeling, f"{base.name}ForCausalLM")
    model = type(
        f"{name}ForCausalLM",
        (RetrofittedCausalLM, stock),
        {**common, "config_class": config, "__doc__": f"{base.name} with a looped core."},
    )
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return config, model


CONFIGS: dict[str, type[PreTrainedConfig]] = {}
MODELS: dict[str, type[PreTrainedModel]] = {}
for _base in FAMILIES.values():
    _config, _model = _classes(_base)
    CONFIGS[_base.model_type], MODELS[_base.model_type] = _config, _model
    globals()[_config.__name__], globals()[_model.__name__] = _config, _model
AttentionInterface.register(ATTENTION, placed_attention)
