"""Surgery: a pretrained LM -> prelude, core and coda with an adapter, function kept at one loop.

Source: McLeish et al., arXiv 2511.07384: the first layers are the prelude, core and coda are taken
from the end, the layers between are dropped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError, UsageError
from ..liger import modeling
from ..liger.spec import LigerSpec
from .families import find
from .retrofitted import CONFIGS, MODELS, start
from .spec import LoopSpec

# Settings of peft's `LoraConfig` under which the adapter into the core is trained itself.
WHOLE = {"modules_to_save": ["adapter"], "exclude_modules": ["adapter"]}


def looped_config(config: PreTrainedConfig, spec: LoopSpec) -> PreTrainedConfig:
    """The config of the looped model, from its base's.

    Raises `InputError` for a model that cannot be looped, `UsageError` for too few layers.
    """
    base = find(config)
    if reasons := base.refusals(config):
        raise InputError(f"this {base.model_type} model cannot be looped: {'; '.join(reasons)}")
    kept = spec.kept(config.num_hidden_layers)
    values = config.to_dict()
    for name in ("model_type", "architectures", "auto_map"):
        values.pop(name, None)
    if values.get("layer_types") is not None:
        values["layer_types"] = [values["layer_types"][i] for i in kept]
    held = values.get("linearize") or {}
    if "spec" in held:
        held |= _cut_attention(held, kept, config.num_hidden_layers)
    values |= {
        "num_hidden_layers": len(kept),
        "attention_dropout": 0.0,  # attention over a shared cache has none
        "linearize": {**held, "loop": spec.to_dict(), "layers": kept},
    }
    return CONFIGS[base.model_type](**values)


def _cut_attention(held: dict[str, Any], kept: list[int], layers: int) -> dict[str, Any]:
    """What a converted model's config says of its layers, for the kept ones."""
    spec = LigerSpec.from_dict(held["spec"])
    if spec.prefix != "none":
        raise InputError(
            f"the model's attention encodes prompts as a whole (prefix={spec.prefix!r}), which a "
            "looped core does not; loop a model converted with prefix='none'"
        )
    softmax = spec.softmax_layers(layers)
    left = replace(spec, keep_softmax=tuple(i for i, k in enumerate(kept) if k in softmax))
    base = held["base"]
    lists = (name for name in ("own_windows", "layer_types") if base.get(name))
    return {
        "spec": left.to_dict(),
        "base": base | {name: [base[name][k] for k in kept] for name in lists},
    }


def retrofit(model: PreTrainedModel, spec: LoopSpec) -> PreTrainedModel:
    """Cut a loaded transformers model, in place and without training.

    At one recurrence the result computes what the model computes without its dropped layers; so it
    does at any other number, until training teaches the adapter to look at the state.
    A model converted to Liger attention keeps it: each recurrence then has states of its own.
    Returns the same object, now of the looped class, which saves and loads as such.
    Raises `InputError` for an unsupported model, `UsageError` for a spec that does not fit it.
    """
    if getattr(model, "peft_config", None):
        raise UsageError("the model carries a peft adapter; merge it before looping")
    old = model.config
    base = find(old)
    stock = getattr(base.modeling, f"{base.name}ForCausalLM")
    if type(model) not in (stock, modeling.MODELS.get(base.model_type)):
        raise InputError(
            f"{type(model).__name__} is not a causal language model of transformers; "
            f"load it with AutoModelForCausalLM ({base.name}ForCausalLM)"
        )
    config = looped_config(old, spec)
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = config
    layers = model.model.layers
    model.model.layers = nn.ModuleList(layers[i] for i in spec.kept(len(layers)))
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    model.__class__ = MODELS[base.model_type]
    start(model)
    return model
