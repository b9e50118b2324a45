"""Make pretrained LLMs recurrent, and decode from them.

Names are loaded on first use: importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import _register
from ._version import __version__

# public name -> where it lives
_HOMES = {
    "LigerSpec": "liger.spec",
    "apply": "liger.modeling",
    "Result": "job",
    "convert": "conversion",
    "finetune": "finetuning",
    "loop": "looping",
    "retrofit": "recurrent_depth.retrofit",
    "load": "converted",
    "swap": "swapping",
}

__all__ = ["LigerSpec", "Result", "__version__", "apply", "convert", "finetune", "load", "loop"]
__all__ += ["ops", "retrofit", "swap"]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


_register.when_transformers_loads()
