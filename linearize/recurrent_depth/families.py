"""Pretrained families that can be cut into prelude, core and coda: rows of `liger.bases`.

Any decoder of transformers fits whose layers hand their keywords down to the attention function:
norms, biases, positions and windows stay the family's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError, suggest
from ..liger.bases import BASES, Base
from ..liger.bases import PREFIX as CONVERTED

if TYPE_CHECKING:  # `import linearize` registers these names without importing torch
    from transformers import PreTrainedConfig

PREFIX = "looped_"  # of the model_type of retrofitted models
FAMILIES = {name: base for name, base in BASES.items() if base.loops}


def supported() -> list[str]:
    """Names (`model_type`) of the families that can be retrofitted."""
    return sorted(FAMILIES)


def find(config: PreTrainedConfig) -> Base:
    """The row for a model's config, converted to Liger attention or not.

    Raises `InputError` naming the supported families.
    """
    name = (config.model_type or "").removeprefix(CONVERTED)
    if name.startswith(PREFIX) or name == "huginn_raven":
        raise InputError(
            f"the model is looped already (type '{name}'); `linearize finetune` trains"
        )
    if name not in FAMILIES:
        near = suggest(name, FAMILIES)
        remedy = near if "did you mean" in near else ""
        raise InputError(
            f"models of type '{name}' cannot be looped{remedy}; "
            f"supported families: {', '.join(supported())}"
        )
    return FAMILIES[name]
