"""What a job would do, told without loading weights: `plan` a conversion, or another job.

The models are built on the meta device; of the data, the first document is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from . import device, pretrained, sensitivity
from .errors import InputError, UsageError
from .inspection import about, dtype_name
from .job import with_adapters
from .liger import bases, gates, modeling, sizes
from .liger.spec import LigerSpec
from .output import OutputDirectory
from .recipe import AnyRecipe, FinetuneRecipe, LoopRecipe, Recipe
from .recurrent_depth.retrofit import WHOLE, looped_config
from .training import data, objectives, prefix_rows, stages
from .training.optimizer import steps_of


def plan(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, dry: bool = False
) -> dict[str, Any]:
    """What `convert` would do with this recipe, and what memory it would take.

    - `dry`: nothing will be run, so a base without weights does; `notes` says that there are none.

    Keys: `model`, `swap`, `parameters`, `stages`, `training`, `data`, `memory_bytes` (per device;
    see `sizes.training_bytes`), `device` and `fits`, `state_bytes`, `kv_bytes_per_token`, `notes`
    (what may not be meant), `output`. With `keep_softmax: auto:k`, `swap` says k as `measured`: so
    many of its `layers` will stay softmax too.

    Raises what `convert` would raise before it loads weights: for a missing or unsupported model,
    damaged files, data that is not there, wrong names, an output directory in the way.
    """
    path, config = _found(recipe, "convert", dry)
    if config.model_type.startswith(modeling.PREFIX):
        made_of = config.linearize.get("provenance", {}).get("base", "its base")
        raise InputError(f"{recipe.base} is converted already; start from {made_of}")
    settings, named = recipe.training, recipe.liger.spec().resolved(config.num_hidden_layers)
    spec = sensitivity.stand_in(named, recipe.liger.auto, config.num_hidden_layers)
    gates.of(spec)
    stages.check(recipe)
    prefix_rows.check(settings.objective, spec.prefix, made=True)
    converted = sizes.converted_model(config, spec)
    absent = _check_files(recipe, path, dry)
    shape = sizes.Shape.of(config, spec)
    on, dtype, saved = _computing(recipe, path, config)
    total, mix = sizes.parameters(converted), sizes.mix_parameters(converted)
    lora = recipe.lora
    targets = bases.lora_targets(config.model_type, lora.targets)
    adapters = sizes.lora_parameters(converted, rank=lora.rank, targets=targets)
    trained = adapters + mix if lora.rank else total
    every = (settings, *recipe.stages)
    taught = [objectives.needs_teacher(x.objective) is not None for x in every]
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
        teacher=any(taught),
    )
    run = _training(recipe, dtype)
    operations = sizes.training_operations(
        converted,
        tokens=run["tokens"],
        everything=not lora.rank,
        teacher=taught[0],
        checkpointing=settings.gradient_checkpointing,
    )
    return {
        "model": about(recipe.base, path, config),
        "swap": {
            "layers": [i for i in range(config.num_hidden_layers) if i not in named.keep_softmax],
            "kept_softmax": list(named.keep_softmax),
            "measured": recipe.liger.auto,
            "spec": named.to_dict(),
        },
        "parameters": {
            "base": total - mix,
            "adapters": adapters,
            "mix": mix,
            "trained": trained,
            "trained_share": trained / (total + adapters),
        },
        "stages": stages.planned(recipe, mix),
        "training": {**run, "operations": operations},
        "data": _data(recipe),
        "memory_bytes": memory,
        "device": {"name": str(on), "memory_bytes": device.memory(on)},
        "fits": memory["total"] <= device.memory(on),
        "state_bytes": sizes.state_bytes(shape, spec, saved),
        "kv_bytes_per_token": sizes.kv_bytes_per_token(shape, saved),
        "saved_dtype": dtype_name(saved),
        "notes": absent + _notes(recipe, config, spec),
        "output": _output(recipe, path, total * saved.itemsize, resume, overwrite),
    }


def finetuning(
    recipe: FinetuneRecipe, *, resume: bool = False, overwrite: bool = False, dry: bool = False
) -> dict[str, Any]:
    """What `finetune` would do with this recipe; `dry` as in `plan`.

    Keys: `model`, `parameters`, `training`, `repetition` (None where no step repeats), `data`,
    `memory_bytes` (weights, gradients and AdamW moments, logits; activations, which depend on the
    architecture, come on top), `device`, `saved_dtype`, `notes`, `output`.

    Raises what `finetune` would raise before it loads weights.
    """
    path, config = _found(recipe, "finetune", dry)
    stages.check(recipe)
    held = (getattr(config, "linearize", None) or {}).get("spec", {})
    prefix_rows.check(recipe.training.objective, held.get("prefix", "none"))
    repeats = objectives.needs_repeats(recipe.training.objective)
    return {
        **_trained(recipe, path, config, sizes.base_model(config), resume, overwrite, dry),
        "repetition": recipe.repetition.model_dump(mode="json") if repeats else None,
    }


def looping(
    recipe: LoopRecipe, *, resume: bool = False, overwrite: bool = False, dry: bool = False
) -> dict[str, Any]:
    """What `loop` would do with this recipe; `dry` as in `plan`.

    Keys: as of `finetuning`, without `repetition`, and `loop` (the cut, `kept` and `dropped`
    layers of the base) and `recurrence` (of training). Of the recurrences in training, the
    `backprop` last ones take activations.

    Raises what `loop` would raise before it loads weights.
    """
    path, config = _found(recipe, "loop", dry)
    spec = recipe.spec()
    looped = looped_config(config, spec)
    if taught := objectives.needs_teacher(recipe.training.objective):
        raise UsageError(
            f"objective '{taught}' needs the model as it was, and its layers are cut here; "
            "use training.objective={next_token: 1}"
        )
    stages.check(recipe)
    prefix_rows.check(recipe.training.objective, "none")
    kept = spec.kept(config.num_hidden_layers)
    dropped = [i for i in range(config.num_hidden_layers) if i not in kept]
    return {
        **_trained(recipe, path, config, sizes.base_model(looped), resume, overwrite, dry),
        "loop": {**spec.to_dict(), "kept": kept, "dropped": dropped},
        "recurrence": recipe.recurrence.model_dump(mode="json"),
    }


def _trained(
    recipe: FinetuneRecipe | LoopRecipe,
    path: Path,
    config: PreTrainedConfig,
    model: nn.Module,
    resume: bool,
    overwrite: bool,
    dry: bool,
) -> dict[str, Any]:
    """What training `model`, made of the base that `config` describes, takes."""
    notes = _check_files(recipe, path, dry)
    on, dtype, saved = _computing(recipe, path, config)
    settings, length = recipe.training, recipe.data.seq_len
    total = sizes.parameters(model)
    adapters = _adapters(model, recipe) if recipe.lora.rank else 0
    trained = adapters or total
    if not adapters:
        dtype = torch.float32
    copies = 3 if objectives.needs_teacher(settings.objective) else 2
    memory = {
        "weights": total * dtype.itemsize + adapters * 4,
        "optimizer": trained * (4 + 8),
        "logits": settings.batch_size * length * config.get_text_config().vocab_size
        * dtype.itemsize * copies,
    }  # fmt: skip
    context = getattr(config, "max_position_embeddings", None)
    if context and length > context:
        notes.append(f"rows of {length} tokens are longer than the model's context of {context}")
    return {
        "model": about(recipe.base, path, config),
        "parameters": {"base": total, "adapters": adapters, "trained": trained},
        "training": _training(recipe, dtype),
        "data": _data(recipe),
        "memory_bytes": {**memory, "total": sum(memory.values())},
        "device": {"name": str(on), "memory_bytes": device.memory(on)},
        "saved_dtype": dtype_name(saved),
        "notes": notes,
        "output": _output(recipe, path, total * saved.itemsize, resume, overwrite),
    }


def _found(recipe: AnyRecipe, command: str, dry: bool) -> tuple[Path, PreTrainedConfig]:
    """Where the recipe's base is, and its configuration."""
    if not recipe.base:
        raise UsageError(
            f"there is no model to {command}; name it first: linearize {command} MODEL"
        )
    trust = recipe.trust_remote_code
    path = pretrained.locate(
        recipe.base, revision=recipe.revision, trust_remote_code=trust, weights=not dry
    )
    return path, pretrained.read_config(path, trust)


def _check_files(recipe: AnyRecipe, path: Path, dry: bool) -> list[str]:
    """Check weights and tokenizer; what could not be checked because it is not there."""
    if not (dry and pretrained.only_config(path)):
        pretrained.check_weights(path)
        pretrained.tokenizer(path, recipe.trust_remote_code)
        return []
    found = "a tokenizer, but no weights" if pretrained.has_tokenizer(path) else "only config.json"
    if pretrained.has_tokenizer(path):
        pretrained.tokenizer(path, recipe.trust_remote_code)
    return [f"{path} has {found}: a plan needs no more, a run does"]


def _computing(
    recipe: AnyRecipe, path: Path, config: PreTrainedConfig
) -> tuple[torch.device, torch.dtype, torch.dtype]:
    """The device, the dtype to compute in there, and the dtype to save."""
    on = device.pick(recipe.training.device)
    stored = pretrained.stored_dtype(path, config)
    dtype = device.dtype(recipe.training.dtype, stored, on)
    return on, dtype, stored if recipe.training.dtype == "auto" else dtype


def _training(recipe: AnyRecipe, dtype: torch.dtype) -> dict[str, Any]:
    settings = recipe.training
    steps, tokens_per_step = steps_of(settings, seq_len=recipe.data.seq_len)
    return {
        "tokens": steps * tokens_per_step,
        "tokens_per_step": tokens_per_step,
        "steps": steps,
        "seq_len": recipe.data.seq_len,
        "objective": settings.objective,
        "learning_rate": settings.learning_rate,
        "dtype": dtype_name(dtype),
    }


def _adapters(model: nn.Module, recipe: FinetuneRecipe | LoopRecipe) -> int:
    """Parameters that are trained where peft makes adapters for this architecture."""
    known = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    try:
        whole = WHOLE if isinstance(recipe, LoopRecipe) else {}
        made = with_adapters(model, recipe, **whole)
    except ValueError as error:
        raise UsageError(
            f"lora.targets={recipe.lora.targets}: {str(error).splitlines()[0]}; linear "
            f"layers here: {', '.join(sorted(known))}; or train everything with lora.rank=0"
        ) from error
    return sum(p.numel() for p in made.parameters() if p.requires_grad)


def _notes(recipe: Recipe, config: PreTrainedConfig, spec: LigerSpec) -> list[str]:
    length, context = recipe.data.seq_len, config.max_position_embeddings
    notes = []
    targets = bases.lora_targets(config.model_type, recipe.lora.targets)
    if recipe.lora.rank and set(targets) != set(recipe.lora.targets):
        notes.append(
            f"lora.targets {', '.join(recipe.lora.targets)}: one layer computes several of them "
            f"here, and the adapter is on the whole of it ({', '.join(targets)})"
        )
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


def _data(recipe: AnyRecipe) -> dict[str, Any]:
    settings = recipe.data
    next(data.documents(settings))  # raises what reading it would raise
    if settings.eval_source:
        next(data.documents(settings.model_copy(update={"source": settings.eval_source})))
    held_out = settings.eval_source or f"{settings.eval_fraction:.0%} of the documents"
    return {"source": settings.source, "held_out": held_out, "boundaries": settings.boundaries}


def _output(
    recipe: AnyRecipe, path: Path, size: int, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    if recipe.out is None:
        return None
    out = OutputDirectory(
        recipe.out, resume=resume, overwrite=overwrite, needs=size, sources=(path,)
    )
    return {"path": str(out.final), "save": recipe.output.save, "weight_bytes": size}
