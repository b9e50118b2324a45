"""The one-line module that lets transformers load a checkpoint without importing linearize.

`trust_remote_code=True` runs it: it imports the class from the installed package, so that no source
is copied into checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

STUB = "modeling_linearize.py"


class SavesStub:
    """Mixin for model classes of this package, before transformers' own."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As in transformers, plus the one-line module that `trust_remote_code=True` loads."""
        config, model = type(self.config).__name__, type(self).__name__
        module = STUB.removesuffix(".py")
        self.config.auto_map = {
            "AutoConfig": f"{module}.{config}",
            "AutoModelForCausalLM": f"{module}.{model}",
        }
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            stub = f"from {type(self).__module__} import {config}, {model}  # noqa: F401\n"
            Path(save_directory, STUB).write_text(stub, encoding="utf-8")
