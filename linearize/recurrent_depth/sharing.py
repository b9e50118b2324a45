"""Which recurrence's keys and values a core layer keeps, and what stands in for a missing one.

Every recurrence of every core layer writes keys and values. Keeping them all costs r times the
memory of an ordinary cache; sharing keeps a few and lets later recurrences overwrite earlier ones
(arXiv 2502.05171, section 6.2: "KV cache sharing"; a budget of 1 leaves GSM8K unchanged there).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import UsageError, suggest

LOOKUPS = ("latest", "always-last", "skip")
# Names of the released code (seal-rg/recurrent-pretraining). Its "available-m4" gives the same
# result as "latest-m4", and its "full" drops tokens that exited early.
_LOOKUP_NAMES = {
    "full": "skip",
    "skip": "skip",
    "latest-m4": "latest",
    "available-m4": "latest",
    "always-last-m4": "always-last",
}


@dataclass(frozen=True)
class Sharing:
    """What is kept of the recurrences of one token.

    - `budget`: recurrence t writes place t mod budget of its core layer; None keeps all.
    - `anchor`: the first `anchor` recurrences have places of their own before the shared ones.
    - `lookup`: what a recurrence sees of a token that stopped before it: "latest" (its deepest
      recurrence not beyond this one), "always-last" (its deepest, even beyond), "skip" (nothing).
    - `merge`: parity with the released "compress-rN" only, where neighbouring layers overwrite
      each other.
    """

    budget: int | None = None
    anchor: int = 0
    lookup: str = "latest"
    merge: int | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"cache budget {self.budget} must be at least 1 recurrence")
        if self.lookup not in LOOKUPS:
            raise UsageError(f"unknown cache lookup '{self.lookup}'{suggest(self.lookup, LOOKUPS)}")

    @classmethod
    def of(cls, value: Sharing | str | int | None, core: int) -> Sharing:
        """From a `Sharing`, a budget, None (keep all) or a name of the released code.

        - `core`: layers in the core; the released "compress-sN" counts N layers, not recurrences.

        Raises `UsageError` for a name that is not known or does not fit the core.
        """
        if isinstance(value, Sharing):
            return value
        if value is None or isinstance(value, int):
            return cls(budget=value)
        lookup, _, rest = value.partition("-compress-")
        if lookup not in _LOOKUP_NAMES:
            known = (*_LOOKUP_NAMES, "latest-m4-compress-s4", "latest-m4-compress-anchor")
            raise UsageError(f"unknown cache sharing '{value}'{suggest(value, known)}")
        base = cls(lookup=_LOOKUP_NAMES[lookup])
        if not rest:
            return base
        if rest == "anchor":
            return replace(base, budget=1, anchor=8)
        found = re.fullmatch(r"([sr])([1-9]\d*)", rest)
        if found is None:
            raise UsageError(f"unknown cache sharing '{value}': compress-sN or compress-anchor")
        count = int(found[2])
        if found[1] == "r":
            return replace(base, merge=count)
        if count % core:
            raise UsageError(
                f"cache sharing '{value}' keeps {count} layers, not a multiple of the {core} core "
                f"layers; for a budget of 1 recurrence write compress-s{core} or give 1"
            )
        return replace(base, budget=count // core)

    @property
    def kept(self) -> int | None:
        """Recurrences a core layer holds at most; None = as many as are run."""
        return None if self.budget is None else self.anchor + self.budget

    def place(self, step: int) -> int:
        """Which of the kept places recurrence `step` (from 0) writes."""
        if self.budget is None or step < self.anchor:
            return step
        return self.anchor + (step - self.anchor) % self.budget

    def slot(self, place: int, layer: int, core: int) -> int:
        """Number of the slot of core layer `layer` at a kept place, counted from the first."""
        slot = core * place + layer
        return slot if self.merge is None else slot // self.merge
