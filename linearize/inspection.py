"""What can be told of a model without its weights: `inspect`, and what a plan says of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from . import pretrained
from .errors import InputError
from .liger import bases, gates, modeling, sizes
from .liger.spec import LigerSpec


def inspect(
    name: str,
    spec: LigerSpec | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """What would be converted in a model, and how large its state and KV cache are.

    Keys: `model` (where, family, parameters, dtype, licence, context), `convertible` and
    `reasons` (why not), `spec`, `layers`, `added_parameters`, and for supported families
    `state_bytes`, `kv_bytes_per_token`, `break_even_tokens` and `memory` (bytes of both caches at
    1k to 128k tokens of one sequence). A converted model is described as the model it is.

    Raises `InputError` if there is no such model, or it is not a causal language model.
    """
    path = pretrained.locate(name, revision=revision, trust_remote_code=trust_remote_code)
    config = pretrained.read_config(path, trust_remote_code)
    spec, reasons = spec or LigerSpec(), []
    if config.model_type.startswith(modeling.PREFIX):
        spec = modeling.spec_of(config)
        reasons.append("it is converted already; start from its base to convert it differently")
        config = _base_config(config)
    gates.of(spec)
    reasons += _refusals(path, config)
    result = {
        "model": about(name, path, config),
        "convertible": not reasons,
        "reasons": reasons,
        "spec": spec.to_dict(),
        "gates": sorted(gates.GATES),
        "supported": bases.supported(),
    }
    return result | (_sizes(path, config, spec) if config.model_type in bases.BASES else {})


def about(name: str, path: Path, config: PreTrainedConfig) -> dict[str, Any]:
    """Where a model is, its family, size, dtype, licence and context."""
    return {
        "name": name,
        "path": str(path),
        "model_type": config.model_type,
        "parameters": sizes.parameters(sizes.base_model(config)),
        "dtype": dtype_name(pretrained.stored_dtype(path, config)),
        "license": pretrained.licence(path),
        "context": getattr(config, "max_position_embeddings", None),
    }


def _base_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config a converted model was made of, as far as sizes go."""
    held = config.linearize["base"]
    values = config.to_dict()
    for name in ("model_type", "layer_types", "linearize", "architectures", "auto_map"):
        values.pop(name, None)
    values["sliding_window"] = next((w for w in held["own_windows"] if w), None)
    if held.get("layer_types"):
        values["layer_types"] = held["layer_types"]
    return bases.BASES[held["model_type"]].config_class(**values)


def _refusals(path: Path, config: PreTrainedConfig) -> list[str]:
    reasons = []
    try:
        reasons += bases.find(config).refusals(config)
    except InputError as error:
        reasons.append(str(error))
    try:
        pretrained.check_weights(path)
    except InputError as error:
        reasons.append(str(error))
    return reasons


def _sizes(path: Path, config: PreTrainedConfig, spec: LigerSpec) -> dict[str, Any]:
    shape, dtype = sizes.Shape.of(config, spec), pretrained.stored_dtype(path, config)
    return {
        "layers": {"converted": list(shape.converted), "kept_softmax": list(shape.kept)},
        "heads": {"query": shape.heads, "key_value": shape.kv_heads, "size": shape.head_dim},
        "added_parameters": sizes.added_parameters(shape, spec),
        "state_bytes": sizes.state_bytes(shape, spec, dtype),
        "kv_bytes_per_token": sizes.kv_bytes_per_token(shape, dtype),
        "break_even_tokens": sizes.break_even(shape, spec, dtype),
        "memory": [
            {
                "tokens": tokens,
                "base_bytes": sizes.base_cache_bytes(shape, tokens, dtype),
                "converted_bytes": sizes.converted_cache_bytes(shape, spec, tokens, dtype),
            }
            for tokens in sizes.LENGTHS
        ],
    }


def dtype_name(dtype: torch.dtype) -> str:
    """As in configurations: `bfloat16`, not `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
