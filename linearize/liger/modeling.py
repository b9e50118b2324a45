"""Model classes: a thin subclass per base family whose attention has been swapped.

The stock model keeps its forward, its checkpointing and its sharding plan; only the attention
modules change class, and a hook on the decoder tells them about padding and packing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from ..errors import InputError, UsageError
from ..ops.prefix import prefix_tokens
from ..stub import SavesStub
from . import bases, gates
from .attention import ATTENTION, LigerAttention, liger_class
from .bases import PREFIX
from .layout import Layout, carry_layout, document_starts
from .mixes import Mixing
from .prefix import PrefixEncoder
from .rotary import keep_own_rotary
from .spec import DELAYED, LigerSpec

Prefixes = int | Sequence[int] | Tensor  # per row [B], or one for all, in real tokens


class LigerMixin(SavesStub):
    """What a converted causal LM adds to the stock one of its base family."""

    _keep_in_fp32_modules_strict = ("mix", "prefix")
    _is_stateful = True  # generate then refuses what would have to roll a state back

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        _swap(self)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Mixing | PrefixEncoder):
            module.reset()
        else:
            super()._init_weights(module)

    def compiled_steps(self, when: str = "auto") -> contextlib.AbstractContextManager[None]:
        """Inside the block, compiled layers decode single tokens, see `step.compiled_steps`."""
        from .step import compiled_steps  # the compiler's modules take their time to import

        return compiled_steps(self, when)

    def create_masks_for_generate(self, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """`generate` passes masks through: the layers need the 2-D one, not one per layer type."""
        return attention_mask

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        prefix_lengths: Prefixes | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; with `prefix="jrt"` the whole prompt is the prefix, unless given.

        - `prefix_lengths`: as in the forward pass; 0 = read the prompt from left to right.
        """
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            return inputs  # what has been read stays read
        if prefix_lengths is None and spec_of(self.config).prefix != "none":
            if past_key_values is None:
                raise UsageError(
                    "without a cache the end of the prompt is not known after the first token; "
                    "give prefix_lengths, or use_cache=True"
                )
            prefix_lengths = input_ids.shape[1] if attention_mask is None else attention_mask.sum(1)
        return {**inputs, "prefix_lengths": prefix_lengths}


def spec_of(config: PreTrainedConfig) -> LigerSpec:
    """The spec stored in a converted model's config."""
    return LigerSpec.from_dict(config.linearize["spec"])


def liger_config(config: PreTrainedConfig, spec: LigerSpec) -> PreTrainedConfig:
    """The config of the converted model, from its base's config.

    Raises `InputError` if the base cannot be converted, with the reasons; `UsageError` if the
    spec's gate cannot do what the spec asks.
    """
    base, gate = bases.find(config), gates.of(spec)
    if reasons := base.refusals(config):
        raise InputError(f"this {base.model_type} model cannot be converted: {'; '.join(reasons)}")
    layers = config.num_hidden_layers
    spec = spec.resolved(layers)
    kept = spec.softmax_layers(layers)
    values = config.to_dict()
    for name in ("model_type", "architectures", "auto_map"):
        values.pop(name, None)
    values["layer_types"] = [
        "full_attention" if i in kept else "hybrid_sliding" for i in range(layers)
    ]
    # a cache holds one token less: a delayed recurrence needs the one that leaves the window too
    values["sliding_window"] = spec.window + (spec.mix in DELAYED)
    states = len(gate.states) + (2 if spec.sinks else 0)
    if states > 1:
        values["number_of_conv_states"] = states  # read by transformers' caches
    values |= base.config_changes
    own_types = getattr(config, "layer_types", None)
    if base.rotary_by_layer_type:  # the stock constructor asks for one per type it finds
        rotary = values["rope_parameters"]
        values["rope_parameters"] = {**rotary, "hybrid_sliding": rotary["sliding_attention"]}
    values["linearize"] = {
        "spec": spec.to_dict(),
        "base": {
            "model_type": base.model_type,
            "own_windows": [base.own_window(config, i) for i in range(layers)],
            "layer_types": own_types and list(own_types),
        },
    }
    return CONFIGS[base.model_type](**values)


def apply(model: PreTrainedModel, spec: LigerSpec | None = None) -> PreTrainedModel:
    """Swap the attention of a loaded transformers model, in place and without training.

    Adds no parameters with `mix="fixed"`; else what the mix trains, such as one weight per head.
    Returns the same object, now of the converted class, which saves and loads as such.
    Raises `InputError` for an unsupported model, `UsageError` for a spec that does not fit it.
    """
    spec = spec or LigerSpec()
    if getattr(model, "peft_config", None):
        raise UsageError("the model carries a peft adapter; merge it before converting")
    if model.config.model_type.startswith(PREFIX):
        raise UsageError("the model is converted already; start from its base")
    old = model.config
    base = bases.find(old)
    if type(model) is not base.modeling.__dict__[f"{base.name}ForCausalLM"]:
        raise InputError(
            f"{type(model).__name__} is not a causal language model of transformers; "
            f"load it with AutoModelForCausalLM ({base.name}ForCausalLM)"
        )
    config = liger_config(old, spec)
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = config
    model.__class__ = MODELS[base.model_type]
    _swap(model)
    return model


@contextlib.contextmanager
def attention_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Run a converted model as "softmax" (its teacher), "window" (no recurrence) or "liger".

    Works on a model wrapped by peft too. Softmax mode computes no cache.
    """
    decoder = next(m for m in model.modules() if hasattr(m, "liger_mode"))
    before, decoder.liger_mode = decoder.liger_mode, mode
    try:
        yield
    finally:
        decoder.liger_mode = before


def swap_attention(model: PreTrainedModel) -> None:
    """Give the layers that the config's spec names their attention, where they lack it."""
    spec = spec_of(model.config)
    base = bases.BASES[model.config.linearize["base"]["model_type"]]
    own_windows = model.config.linearize["base"]["own_windows"]
    kept = spec.softmax_layers(model.config.num_hidden_layers)
    for i, attention in enumerate(base.attentions(model)):
        attention.own_window = own_windows[i]
        if i not in kept and not isinstance(attention, LigerAttention):
            attention.__class__ = liger_class(type(attention))
            attention.start(base, spec)
            attention.to(next(attention.parameters()).device)


def _swap(model: PreTrainedModel) -> None:
    swap_attention(model)
    held = model.config.linearize["base"]
    base = bases.BASES[held["model_type"]]
    decoder = model.get_decoder()
    if base.rotary_by_layer_type:
        keep_own_rotary(decoder, base.attentions(model), held["layer_types"])
    if base.drops_keywords:
        carry_layout(decoder.layers, base.attention)
    decoder.liger_mode = "liger"
    decoder.register_forward_pre_hook(
        _by_layer_type if base.masks_by_layer_type else _prepare, with_kwargs=True
    )
    model.config._attn_implementation = ATTENTION


def _prepare(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    """Turn the 2-D mask, the positions, the cache and the prefix into the layers' `layout`."""
    tokens = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    B, T = tokens.shape[:2]
    cache = kwargs.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    mask = _real_tokens(kwargs.pop("attention_mask", None), B, past, T)
    positions, cu_seqlens = kwargs.get("position_ids"), None
    if mask is not None and positions is None:
        # real tokens count, so that padding inside a row leaves no gap either
        kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
    elif mask is None and positions is not None and past == 0 and T > 1:
        cu_seqlens = document_starts(positions, B)
        if cu_seqlens is not None:
            kwargs["use_cache"], kwargs["past_key_values"] = False, None
    prefix = _prefix(kwargs.pop("prefix_lengths", None), decoder, tokens, past, mask, cu_seqlens)
    settled = mask is None
    if not settled:
        spec = spec_of(decoder.config)
        settled = _left_behind(mask, past, spec)
        if settled and not spec.softmax_layers(len(decoder.layers)):
            mask = None  # a pass without is about a seventh faster
    kwargs["layout"] = Layout(decoder.liger_mode, past, mask, cu_seqlens, prefix, settled)
    return args, kwargs


def _prefix(
    lengths: Prefixes | None,
    decoder: nn.Module,
    tokens: Tensor,
    past: int,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Tensor | None:
    """[B, T] bool, or None where no row has a prefix."""
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths, device=tokens.device).expand(tokens.shape[0])
    if not lengths.any():
        return None
    if spec_of(decoder.config).prefix == "none":
        raise UsageError(
            "prefix_lengths are given, and this model has no prefix encoder; convert it with "
            "liger.prefix=jrt (prefix='jrt' in LigerSpec)"
        )
    if past:
        raise UsageError(
            f"prefix_lengths are given, and the cache holds {past} tokens already; a prefix is "
            "read whole and at once, by the first forward pass"
        )
    if cu_seqlens is not None:
        raise UsageError(
            "prefix_lengths are given for rows that hold several documents; give one document per "
            "row (position_ids that do not restart)"
        )
    return prefix_tokens(lengths, mask, tokens.shape[1])


def _by_layer_type(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    args, kwargs = _prepare(decoder, args, kwargs)
    kwargs["attention_mask"] = dict.fromkeys(decoder.config.layer_types)
    return args, kwargs


def _real_tokens(mask: Tensor | None, batch: int, past: int, T: int) -> Tensor | None:
    """[B, past + T] bool, or None when every token is real."""
    if mask is None:
        return None
    if mask.ndim != 2:
        raise UsageError(
            f"attention_mask of shape {tuple(mask.shape)}: converted models take the 2-D padding "
            "mask [batch, tokens so far], 1 = real token"
        )
    if mask.shape[1] < past + T:
        raise UsageError(
            f"attention_mask covers {mask.shape[1]} tokens, but the cache holds {past} and {T} are "
            f"new; give all {past + T}"
        )
    mask = mask[:, : past + T].bool()  # generate with a static cache pads it to the cache's length
    return None if mask.all() else mask.expand(batch, -1)


def _left_behind(mask: Tensor, past: int, spec: LigerSpec) -> bool:
    """Whether every padded token lies before the windows, so that no converted layer can meet it
    again, and all sinks are there.
    """
    reach = spec.window + spec.sinks  # and one token more, which delayed mixes keep
    if past <= reach:
        return False
    return bool(mask[:, :past].sum(1).min() > reach and mask[:, past:].all())


def _classes(base: bases.Base) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The converted config and model class of one family, registered with the Auto classes."""
    name = f"Liger{base.name}"
    common = {"__module__": __name__}
    config = type(
        f"{name}Config",
        (base.config_class,),
        {**common, "model_type": PREFIX + base.model_type, "__annotations__": {}},
    )
    stock = getattr(base.modeling, f"{base.name}ForCausalLM")
    model = type(
        f"{name}ForCausalLM",
        (LigerMixin, stock),
        {**common, "config_class": config, "__doc__": f"{base.name} with Liger attention."},
    )
    for here, there in ((config.model_type, base.model_type), (model.__name__, stock.__name__)):
        stored = get_checkpoint_conversion_mapping(there)
        if stored is not None:  # experts, for one, are stored apart and computed together
            register_checkpoint_conversion_mapping(here, stored, overwrite=True)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
    return config, model


CONFIGS: dict[str, type[PreTrainedConfig]] = {}
MODELS: dict[str, type[PreTrainedModel]] = {}
for _base in bases.BASES.values():
    _config, _model = _classes(_base)
    CONFIGS[_base.model_type], MODELS[_base.model_type] = _config, _model
    globals()[_config.__name__], globals()[_model.__name__] = _config, _model
