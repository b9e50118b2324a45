"""Makes converted checkpoints known to transformers after `import linearize`, at no cost before.

Registering needs transformers' Auto classes, which import torch. So nothing is imported here: a
finder waits until somebody imports the Auto classes, and registers right after.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_AUTO = "transformers.models.auto.modeling_auto"
_MODELS = "linearize.liger.modeling"


class _RegisterAfter(MetaPathFinder, Loader):
    """Loads `_AUTO` as usual, then the converted classes, which register themselves."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        self._loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        importlib.import_module(_MODELS)


def when_transformers_loads() -> None:
    """Register now if the Auto classes are there, else as soon as they are."""
    if _AUTO in sys.modules:
        importlib.import_module(_MODELS)
    elif not any(isinstance(finder, _RegisterAfter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfter())
