"""Make pretrained LLMs recurrent, and decode from them.

Names are loaded on first use: importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

from ._version import __version__

__all__ = ["LigerSpec", "__version__", "apply", "convert", "load", "ops"]
