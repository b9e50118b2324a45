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
        self._name_stub()
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self._write_stub(Path(save_directory))

    def save_description(self, directory: Path) -> None:
        """What `save_pretrained` writes beside the weights, which need not be there."""
        self._name_stub()
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(directory)
        self.generation_config.save_pretrained(directory)
        self._write_stub(directory)

    def _name_stub(self) -> None:
        module = STUB.removesuffix(".py")
        self.config.auto_map = {
            "AutoConfig": f"{module}.{type(self.config).__name__}",
            "AutoModelForCausalLM": f"{module}.{type(self).__name__}",
        }

    def _write_stub(self, directory: Path) -> None:
        names = f"{type(self.config).__name__}, {type(self).__name__}"
        stub = f"from {type(self).__module__} import {names}  # noqa: F401\n"
        (directory / STUB).write_text(stub, encoding="utf-8")
