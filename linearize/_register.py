"""Makes our checkpoints known to transformers after `import linearize`, at no cost before.

The model classes derive from transformers' model classes, which import torch. So nothing is
imported here: a finder waits until somebody imports transformers' `AutoConfig` and then registers
stand-ins, which fetch the real classes when such a config is first read.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto.configuration_auto"
_LIGER = "linearize.liger.modeling"
_RAVEN = "linearize.recurrent_depth.model"
_LOOPED = "linearize.recurrent_depth.retrofitted"


class _RegisterAfter(MetaPathFinder, Loader):
    """Loads `_AUTO` as usual, then registers the stand-ins."""

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
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)


def when_transformers_loads() -> None:
    """Register now if `AutoConfig` is there, else as soon as it is."""
    if _AUTO in sys.modules:
        _register(sys.modules[_AUTO])
    elif not any(isinstance(finder, _RegisterAfter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfter())


def _register(auto: ModuleType) -> None:
    from .liger import bases
    from .recurrent_depth import families

    homes = {bases.PREFIX + base: lambda b=base: _real(_LIGER).CONFIGS[b] for base in bases.BASES}
    for base in families.FAMILIES:
        homes[families.PREFIX + base] = lambda b=base: _real(_LOOPED).CONFIGS[b]
    homes["huginn_raven"] = lambda: _real(_RAVEN).RavenConfig
    for name, real in homes.items():
        if name not in auto.CONFIG_MAPPING:
            auto.AutoConfig.register(name, _stand_in(real))


def _real(module: str) -> ModuleType:
    return importlib.import_module(module)


def _stand_in(real: Callable[[], type]) -> type:
    """What `AutoConfig` finds until the real class takes its place, on first use."""

    class StandIn:
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return real()(*args, **kwargs)

        @classmethod
        def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
            return real().from_dict(*args, **kwargs)

    return StandIn
