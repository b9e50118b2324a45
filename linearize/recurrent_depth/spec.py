"""`LoopSpec`: how a pretrained LM is cut into a looped one. Stored in `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import UsageError, suggest

MAX_RECURRENCES = 4096


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """Layers of each part, and how often the core is applied.

    - `prelude`: the first layers; `core` and `coda`: the last ones. What is between is dropped
      (arXiv 2511.07384).
    - `recurrences`: of the core when the caller gives none, and the mean of training's draw.
    - `backprop`: how many of the last recurrences carry gradient.

    Raises `UsageError` for a value out of its range.
    """

    prelude: int
    core: int
    coda: int
    recurrences: int = 8
    backprop: int = 8

    def __post_init__(self) -> None:
        for name, least in {
            f.name: f.name not in ("prelude", "coda") for f in fields(self)
        }.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                why = ": without a core there is nothing to loop" if name == "core" else ""
                raise UsageError(f"{name}={value!r} must be at least {int(least)}{why}")
        if self.recurrences > MAX_RECURRENCES:
            raise UsageError(
                f"recurrences={self.recurrences} is more than the {MAX_RECURRENCES} that models run"
            )

    @property
    def layers(self) -> int:
        """Physical layers of the looped model."""
        return self.prelude + self.core + self.coda

    def kept(self, layers: int) -> list[int]:
        """Which of the base's `layers` stay, in order. Raises `UsageError` if there are too few."""
        if self.layers > layers:
            raise UsageError(
                f"prelude={self.prelude}, core={self.core} and coda={self.coda} need {self.layers} "
                f"layers, and the model has {layers}; take fewer"
            )
        return [*range(self.prelude), *range(layers - self.core - self.coda, layers)]

    def to_dict(self) -> dict[str, int]:
        """Plain JSON types; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopSpec:
        """Read what `to_dict` wrote. Raises `UsageError` naming an unknown key."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise UsageError(f"unknown LoopSpec field '{key}'{suggest(key, known)}")
        return cls(**values)
