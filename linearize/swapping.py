"""The swap without training, one file of weights after the other, for models larger than memory.

The swap changes no weight that the base has: its files are copied as they are, what the conversion
adds comes in a file of its own, and the index joins them. No more than a block of a file is in
memory. The result is what `linearize.apply` and `save_pretrained` make of the base.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from . import card, device, job, pretrained
from .errors import InputError, UsageError
from .inspection import about, dtype_name
from .job import Result
from .liger import modeling, sizes
from .liger.mixes import Mixing
from .liger.prefix import PrefixEncoder
from .output import OutputDirectory
from .recipe import Recipe

_BLOCK = 2**20  # bytes copied at once


def swap(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Result:
    """Write the converted model as it is before training, without loading the base.

    Args:
        recipe: with `base` and `out` set. Of the rest only `liger` counts, and the seed where
            something that is added starts at random. Weights keep the dtype they are stored in.
        resume: go on where an interrupted swap into this `out` ended; whole files are kept.
        overwrite: replace an earlier result in `out`.

    Raises `UsageError`, `InputError` or `OutputError` before anything is written.
    """
    job.need_out(recipe)
    if recipe.liger.auto:
        raise UsageError(
            f"liger.keep_softmax={recipe.liger.keep_softmax}: which layers to keep is measured by "
            "running the model; name them, such as [0, -1], or use every=8"
        )
    path, config = _base(recipe)
    model = sizes.converted_model(config, recipe.liger.spec())
    files = pretrained.weight_files(path)
    stored = pretrained.stored_tensors(path)
    _compare(model, stored, path)
    added = _added(model, recipe.training.seed)
    count = len(files) + bool(added)
    names = [_file_name(number, count) for number in range(1, count + 1)]
    size = sum(file.stat().st_size for file in files)
    began = time.perf_counter()
    with OutputDirectory(
        recipe.out, resume=resume, overwrite=overwrite, needs=size, sources=(path,)
    ) as output:
        job.same_recipe(recipe, output.path)
        digest = hashlib.sha256((path / "config.json").read_bytes())  # as `content_hash` does
        for file, name in zip(files, names, strict=False):
            _copy(file, output.path / name, digest)
            output.keep = True
        if added:
            (output.path / names[-1]).write_bytes(save(added, metadata={"format": "pt"}))
        homes = {file.name: name for file, name in zip(files, names, strict=False)}
        homes = {tensor: homes[file] for tensor, file in stored.items()}
        _write_index(output.path, homes | dict.fromkeys(added, names[-1]), names)
        _describe(model, recipe, path, config, digest.hexdigest())
        model.save_description(output.path)
        pretrained.tokenizer(path, recipe.trust_remote_code).save_pretrained(output.path)
        summary = _summary(model, recipe, path, config, digest.hexdigest())
        text = card.swapped_card(summary, path=recipe.out)
        (output.path / "README.md").write_text(text, encoding="utf-8")
        summary |= {"files": count, "bytes": size, "seconds": time.perf_counter() - began}
        return Result(output.commit(), summary)


def _base(recipe: Recipe) -> tuple[Path, PreTrainedConfig]:
    """Where the base is, with every file of it there and whole, and its configuration."""
    if not recipe.base:
        raise UsageError("there is no model to swap; name it first: linearize swap MODEL")
    trust = recipe.trust_remote_code
    path = pretrained.locate(recipe.base, revision=recipe.revision, trust_remote_code=trust)
    config = pretrained.read_config(path, trust)
    if config.model_type.startswith(modeling.PREFIX):
        raise InputError(f"{recipe.base} is converted already; start from its base")
    pretrained.check_weights(path)
    pretrained.tokenizer(path, trust)
    return path, config


def _compare(model: Any, stored: dict[str, str], path: Path) -> None:
    """Refuse a base whose weights are not all there, before gigabytes are copied."""
    kinds = (type(model).__name__, model.config.model_type)
    if any(get_checkpoint_conversion_mapping(kind) is not None for kind in kinds):
        return  # stored under other names than computed with (experts); loading sorts that out
    added = {id(p) for m in _additions(model) for p in m.parameters()}
    missing = {n for n, p in model.named_parameters() if id(p) not in added} - stored.keys()
    if missing:
        raise InputError(
            f"config.json and the weights of {path} disagree: parameters {len(missing)} missing "
            f"from the weights ({', '.join(sorted(missing)[:3])}); was one of them edited, or does "
            "it belong to another model?"
        )


def _additions(model: nn.Module) -> list[nn.Module]:
    """The modules that the conversion added."""
    return [m for m in model.modules() if isinstance(m, Mixing | PrefixEncoder)]


def _added(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """What the conversion adds, in memory, with the values that `apply` gives it."""
    torch.manual_seed(seed)
    for module in _additions(model):
        module.to_empty(device="cpu")
        module.reset()
    return {n: p.detach().contiguous() for n, p in model.named_parameters() if not p.is_meta}


def _file_name(number: int, count: int) -> str:
    """As transformers names them, so that it finds them."""
    stem, suffix = pretrained.WEIGHTS.rsplit(".", 1)
    return pretrained.WEIGHTS if count == 1 else f"{stem}-{number:05}-of-{count:05}.{suffix}"


def _copy(source: Path, target: Path, digest: Any) -> None:
    """Copy a file, unless it is there, and hash it; under its own name only when it is whole."""
    there = target.exists() and filecmp.cmp(source, target, shallow=False)
    partial = target.with_name(f".{target.name}")
    with source.open("rb") as reading:
        if there:
            while block := reading.read(_BLOCK):
                digest.update(block)
            return
        with partial.open("wb") as writing:
            while block := reading.read(_BLOCK):
                digest.update(block)
                writing.write(block)
    partial.rename(target)


def _write_index(path: Path, homes: dict[str, str], files: list[str]) -> None:
    if len(files) == 1:
        return
    total = sum(_tensor_bytes(path / name) for name in files)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
    text = json.dumps(index, indent=2) + "\n"
    (path / pretrained.INDEX).write_text(text, encoding="utf-8")


def _tensor_bytes(file: Path) -> int:
    """What a file holds besides its header, whose length stands in the first eight bytes."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


def _describe(
    model: Any, recipe: Recipe, path: Path, config: PreTrainedConfig, content: str
) -> None:
    """Give the model the dtype, provenance and generation settings that a loaded one has."""
    dtype = pretrained.stored_dtype(path, config)
    model.config.dtype = dtype
    made = job.provenance(recipe, content, dtype_name(dtype))
    model.config.linearize = {**model.config.linearize, "provenance": made}
    if (path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(path)


def _summary(
    model: nn.Module, recipe: Recipe, path: Path, config: PreTrainedConfig, content: str
) -> dict[str, Any]:
    spec, found = modeling.spec_of(model.config), about(recipe.base, path, config)
    shape = sizes.Shape.of(config, spec)
    dtype = pretrained.stored_dtype(path, config)
    return {
        "base": {n: found[n] for n in ("name", "model_type", "license", "parameters")}
        | {"hash": content},
        "recipe": recipe.model_dump(mode="json"),
        "spec": spec.to_dict(),
        "added_parameters": sizes.mix_parameters(model),
        "state_bytes": sizes.state_bytes(shape, spec, dtype),
        "kv_bytes_per_token": sizes.kv_bytes_per_token(shape, dtype),
        "versions": job.versions(),
        "device": device.describe(torch.device("cpu")),
    }
