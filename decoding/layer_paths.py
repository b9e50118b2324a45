"""Run any chain of a model's layers, some skipped, some repeated (CoLa, arXiv 2507.07996).

- Weights are shared, never copied: each place in the chain gets a light copy of its layer's outer
  modules, whose only difference is the cache slot. Two visits of a layer keep two sets of keys and
  values, and two recurrent states in a converted model.
- While the chain is in force, the config says how many layers there are and of which kind, so the
  caches, masks and `generate` of transformers need to know nothing.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from torch import nn

from linearize.errors import InputError, UsageError
from linearize.recurrent_depth.interface import is_looped

# Lists in a config with one entry per layer that forward passes and caches look up while running.
_PER_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types")


def parse(text: str, layers: int) -> list[int]:
    """`"0-3,5,5,6-11"` -> the layers in the order they run, counted from 0; ends are included.

    - `layers`: how many the model has.

    Raises `UsageError` for anything else, and for layers the model does not have.
    """
    path: list[int] = []
    for piece in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece, re.ASCII)
        if not found:
            raise UsageError(
                f"layers {text!r}: {piece.strip()!r} is neither a layer nor a range; "
                "write layers and ranges with commas, as in 0-3,5,5,6-11"
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise UsageError(
                f"layers {text!r}: the range {first}-{last} runs backwards; write {last}-{first}, "
                "or single layers with commas to run them backwards"
            )
        _inside(last, layers)
        path.extend(range(first, last + 1))
    return path


def written(path: Sequence[int]) -> str:
    """The shortest text that `parse` reads back as `path`."""
    runs = []
    # Inside a run of consecutive layers, layer minus place is constant.
    for _, group in groupby(enumerate(path), lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ",".join(runs)


@contextmanager
def layer_path(model: Any, path: str | Sequence[int]) -> Iterator[Any]:
    """Run `model` along `path` inside the `with` block; yields the model, restored at the end.

    - `model`: a decoder-only model of transformers (converted and peft models too) whose layers
      are one list and know their cache slot (`layer_idx`).
    - `path`: layers from 0, or their text (see `parse`). Inside another `layer_path` they are
      places of that path.

    A cache belongs to one path: start a new one inside the block. Do not save the model or move it
    to another device there.

    Raises `UsageError` for an empty path, layers that do not exist, or only the recurrent layers of
    a hybrid; `InputError` for a model whose layers cannot be rearranged.
    """
    owner, name, layers = _layers(model)
    config = model.config.get_text_config(decoder=True)
    chosen = parse(path, len(layers)) if isinstance(path, str) else [int(i) for i in path]
    if not chosen:
        raise UsageError("the path is empty; a model needs at least one layer")
    for layer in chosen:
        _inside(layer, len(layers))
    settings = _settings(config, chosen)
    _keeps_attention(config, settings)
    before = {key: getattr(config, key) for key in settings}
    chain = nn.ModuleList(_at(layers[layer], slot) for slot, layer in enumerate(chosen))
    try:
        for key, value in settings.items():
            setattr(config, key, value)
        setattr(owner, name, chain)
        yield model
    finally:
        setattr(owner, name, layers)
        for key, value in before.items():
            setattr(config, key, value)


def layer_count(model: Any) -> int:
    """How many layers there are to choose from. Raises `InputError` as `layer_path` does."""
    return len(_layers(model)[2])


def _inside(layer: int, layers: int) -> None:
    if not 0 <= layer < layers:
        raise UsageError(
            f"there is no layer {layer}: the model has {layers} layers, 0 to {layers - 1}"
        )


def _layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the list of layers, its attribute there, and the list."""
    if is_looped(model):
        raise InputError(
            f"{type(model).__name__} is a looped model: its prelude, core and coda stay in order; "
            "change its number of recurrences instead (num_steps of the samplers for looped models)"
        )
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    found = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count and _slots(child)
    ]
    reason = _refusal(config, found)
    if reason:
        raise InputError(f"the layers of this {config.model_type} model stay in order: {reason}")
    return found[0]


def _slots(layers: nn.ModuleList) -> bool:
    """Whether every layer knows its place in the list, which is its slot in the cache."""
    known = [{m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx")} for layer in layers]
    return known == [{place} for place in range(len(layers))]


def _refusal(config: Any, found: list[tuple[nn.Module, str, nn.ModuleList]]) -> str | None:
    if config.is_encoder_decoder:
        return "it has an encoder; only decoder-only models run along a path"
    if config.is_heterogeneous:
        return "its config has settings of its own for some layers (per_layer_config)"
    if getattr(config, "num_kv_shared_layers", 0):
        return "some of its layers read the keys and values of others"
    if getattr(config, "hidden_size_per_layer_input", 0):
        return "each of its layers has an input of its own"
    if len(found) != 1:
        return f"it has {len(found)} lists of {config.num_hidden_layers} layers with cache slots"
    if any("forward" in vars(module) for module in found[0][2].modules()):
        return (
            "another tool replaced their forward (as device_map does); load the model on one device"
        )
    return None


def _settings(config: Any, path: list[int]) -> dict[str, Any]:
    """What the config has to say while `path` runs."""
    settings: dict[str, Any] = {"num_hidden_layers": len(path)}
    for name in _PER_LAYER:
        kinds = getattr(config, name, None)
        # A read-only property follows from the other settings by itself.
        if kinds is not None and not isinstance(getattr(type(config), name, None), property):
            settings[name] = [kinds[layer] for layer in path]
    return settings


def _keeps_attention(config: Any, settings: dict[str, Any]) -> None:
    recurrent = {"linear_attention", "conv", "mamba"}
    before = getattr(config, "layer_types", None) or ()
    kept = settings.get("layer_types", ())
    if kept and recurrent.issuperset(kept) and not recurrent.issuperset(before):
        raise UsageError(
            "the path has recurrent layers only, and this model counts its positions in the cache "
            f"of attention; keep one of layers "
            f"{', '.join(str(i) for i, kind in enumerate(before) if kind not in recurrent)}"
        )


def _at(module: nn.Module, slot: int) -> nn.Module:
    """`module` with cache slot `slot`: itself where nothing inside has one, else a light copy."""
    children = {name: child and _at(child, slot) for name, child in module._modules.items()}
    inside = any(child is not module._modules[name] for name, child in children.items())
    if not inside and not hasattr(module, "layer_idx"):
        return module
    placed = copy.copy(module)  # parameters, buffers and hooks stay shared
    placed._modules = children
    if hasattr(module, "layer_idx"):
        placed.layer_idx = slot
    return placed
