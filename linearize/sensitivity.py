"""How much each layer suffers from conversion: held-out loss with only that layer converted.

Nothing is trained. One swapped model is enough: a hook on each attention gives all layers but one
the base's own attention.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .converted import write_json
from .errors import UsageError
from .liger.attention import LigerAttention
from .liger.spec import LigerSpec
from .training import evaluate
from .training.packing import Rows

FILE = "sensitivity.json"


def measure(model: PreTrainedModel, rows: Rows, *, batch_size: int) -> dict[str, Any]:
    """The damage that converting each layer does.

    Args:
        model: swapped (see `liger.modeling.apply`) and untrained.
        rows: held-out rows; all of them are read once per layer, and once more.
        batch_size: rows per forward pass.

    Returns:
        `teacher`: nats per token with no layer converted, and `layers`: for each converted layer
        its `layer` index, the `loss` with it alone converted, and `damage`, the difference.
    """
    teacher = _loss(model, rows, batch_size, None)
    found = []
    for layer in _converted(model):
        loss = _loss(model, rows, batch_size, layer)
        found.append({"layer": layer, "loss": loss, "damage": loss - teacher})
    return {"teacher": teacher, "layers": found}


def choose(table: dict[str, Any], k: int) -> list[int]:
    """The k layers that are damaged most, in order; of equals the first."""
    worst = sorted(table["layers"], key=lambda row: -row["damage"])[:k]
    return sorted(row["layer"] for row in worst)


def stand_in(spec: LigerSpec, k: int, layers: int) -> LigerSpec:
    """The spec with the last k of the layers it converts kept too: as large as what is chosen.

    Raises `UsageError` where that leaves none to convert.
    """
    free = [i for i in range(layers) if i not in spec.softmax_layers(layers)]
    if k and k >= len(free):
        raise UsageError(
            f"keep_softmax=auto:{k} leaves no layer to convert: there are {len(free)} to choose "
            f"from; keep at most {len(free) - 1}"
        )
    return replace(spec, keep_softmax=(*spec.keep_softmax, *free[len(free) - k :]))


def read(directory: Path) -> dict[str, Any] | None:
    """The table that an interrupted run left behind, or None."""
    file = directory / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def write(directory: Path, table: dict[str, Any]) -> None:
    """Save the table, whole or not at all: a run that was killed may be resumed from it."""
    unfinished = directory / f".{FILE}"
    write_json(unfinished, table)
    os.replace(unfinished, directory / FILE)


def _loss(model: PreTrainedModel, rows: Rows, batch_size: int, layer: int | None) -> float:
    with _only(model, layer):
        return evaluate.mean_loss(model, rows, batch_size=batch_size)[0]


def _converted(model: PreTrainedModel) -> dict[int, LigerAttention]:
    """Converted attentions by layer."""
    return {m.layer_idx: m for m in model.modules() if isinstance(m, LigerAttention)}


@contextlib.contextmanager
def _only(model: PreTrainedModel, layer: int | None) -> Iterator[None]:
    """Layers other than this one compute the base's own attention."""

    def softmax(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "layout": replace(kwargs["layout"], mode="softmax")}

    others = [m for i, m in _converted(model).items() if i != layer]
    hooks = [m.register_forward_pre_hook(softmax, with_kwargs=True) for m in others]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
