"""What a conversion would do, told without loading weights: `inspect` a model, `plan` a run.

The models are built on the meta device; of the data, the first document is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from . import device, pretrained
from .errors import InputError, UsageError
from .liger import bases, gates, modeling, sizes
from .liger.spec import LigerSpec
from .output import OutputDirectory
from .recipe import Recipe
from .training import data, objectives
from .training.optimizer import steps_of


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
    gates.find(spec.gate)
    reasons += _refusals(path, config)
    result = {
        "model": _about(name, path, config),
        "convertible": not reasons,
        "reasons": reasons,
        "spec": spec.to_dict(),
        "gates": sorted(gates.GATES),
        "supported": bases.supported(),
    }
    return result | (_sizes(path, config, spec) if config.model_type in bases.BASES else {})


def plan(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """What `convert` would do with this recipe, and what memory it would take.

    Keys: `model`, `swap`, `parameters`, `training`, `data`, `memory_bytes` (per device; see
    `sizes.training_bytes`), `device` and `fits`, `state_bytes`, `kv_bytes_per_token`, `notes`
    (what may not be meant), `output`.

    Raises what `convert` would raise before it loads weights: for a missing or unsupported model,
    damaged files, data that is not there, wrong names, an output directory in the way.
    """
    if not recipe.base:
        raise UsageError("there is no model to convert; name it first: linearize convert MODEL")
    trust = recipe.trust_remote_code
    path = pretrained.locate(recipe.base, revision=recipe.revision, trust_remote_code=trust)
    config = pretrained.read_config(path, trust)
    if config.model_type.startswith(modeling.PREFIX):
        made_of = config.linearize.get("provenance", {}).get("base", "its base")
        raise InputError(f"{recipe.base} is converted already; start from {made_of}")
    spec, settings = recipe.liger.spec(), recipe.training
    gates.find(spec.gate)
    objectives.check(settings.objective)
    converted = sizes.converted_model(config, spec)
    pretrained.check_weights(path)
    pretrained.tokenizer(path, trust)
    shape = sizes.Shape.of(config, spec)
    on = device.pick(settings.device)
    stored = pretrained.stored_dtype(path, config)
    dtype = device.dtype(settings.dtype, stored, on)
    saved = stored if settings.dtype == "auto" else dtype
    total, mix = sizes.parameters(converted), sizes.mix_parameters(converted)
    lora = recipe.lora
    adapters = sizes.lora_parameters(converted, rank=lora.rank, targets=lora.targets)
    trained = adapters + mix if lora.rank else total
    steps, tokens_per_step = steps_of(settings, seq_len=recipe.data.seq_len)
    memory = sizes.training_bytes(
        shape,
        spec,
        total=total,
        adapters=adapters,
        mix=mix,
        batch_size=settings.batch_size,
        seq_len=recipe.data.seq_len,
        dtype=dtype,
        checkpointing=settings.gradient_checkpointing,
        teacher="distill" in settings.objective,
    )
    return {
        "model": _about(recipe.base, path, config),
        "swap": {
            "layers": list(shape.converted),
            "kept_softmax": list(shape.kept),
            "spec": spec.to_dict(),
        },
        "parameters": {
            "base": total - mix,
            "adapters": adapters,
            "mix": mix,
            "trained": trained,
            "trained_share": trained / (total + adapters),
        },
        "training": {
            "tokens": steps * tokens_per_step,
            "tokens_per_step": tokens_per_step,
            "steps": steps,
            "seq_len": recipe.data.seq_len,
            "objective": settings.objective,
            "learning_rate": settings.learning_rate,
            "dtype": _name(dtype),
        },
        "data": _data(recipe),
        "memory_bytes": memory,
        "device": {"name": str(on), "memory_bytes": device.memory(on)},
        "fits": memory["total"] <= device.memory(on),
        "state_bytes": sizes.state_bytes(shape, spec, saved),
        "kv_bytes_per_token": sizes.kv_bytes_per_token(shape, saved),
        "saved_dtype": _name(saved),
        "notes": _notes(recipe, config, spec),
        "output": _output(recipe, path, total * saved.itemsize, resume, overwrite),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _about(name: str, path: Path, config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(path),
        "model_type": config.model_type,
        "parameters": sizes.parameters(sizes.base_model(config)),
        "dtype": _name(pretrained.stored_dtype(path, config)),
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
        "added_parameters": len(shape.converted) * shape.heads * (spec.mix == "learned"),
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


def _notes(recipe: Recipe, config: PreTrainedConfig, spec: LigerSpec) -> list[str]:
    length, context = recipe.data.seq_len, config.max_position_embeddings
    notes = []
    if length > context:
        notes.append(
            f"rows of {length} tokens are longer than the base's context of {context}: in longer "
            "documents the teacher itself is lost there"
        )
    if spec.window >= length:
        notes.append(
            f"a window of {spec.window} keys sees all of a row of {length} tokens: the recurrence "
            "has nothing to learn"
        )
    return notes


def _data(recipe: Recipe) -> dict[str, Any]:
    settings = recipe.data
    next(data.documents(settings))  # raises what reading it would raise
    if settings.eval_source:
        next(data.documents(settings.model_copy(update={"source": settings.eval_source})))
    held_out = settings.eval_source or f"{settings.eval_fraction:.0%} of the documents"
    return {"source": settings.source, "held_out": held_out, "boundaries": settings.boundaries}


def _output(
    recipe: Recipe, path: Path, size: int, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    if recipe.out is None:
        return None
    out = OutputDirectory(
        recipe.out, resume=resume, overwrite=overwrite, needs=size, sources=(path,)
    )
    return {"path": str(out.final), "save": recipe.output.save, "weight_bytes": size}
