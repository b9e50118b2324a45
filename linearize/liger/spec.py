"""`LigerSpec`: everything that defines a converted attention layer. Stored in `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import UsageError, suggest

MIXES = {
    "fixed": "constant: mix_weight on the recurrence, the rest on the window (Liger, eq. 8)",
    "learned": "one trained weight per head on the recurrence, starting at 0 (the window alone)",
    "delayed": "as learned, but the recurrence covers only what has left the window",
    "joint": "delayed, and window and recurrence share one normaliser: nothing counts twice",
    "window": "the window alone, no recurrence: the baseline every result is compared with",
}
DELAYED = ("delayed", "joint")  # the recurrence covers what has left the window and is no sink

GATE_SOURCES = ("key", "query", "value")
PREFIXES = {
    "none": "the prompt is read from left to right like everything else",
    "jrt": "the prompt is also encoded as a whole into the state (JRT-RNN, arXiv 2407.05483)",
}
COMPILE = ("never", "auto", "always")  # when compiled layers decode, see `step`


@dataclass(frozen=True, kw_only=True)
class LigerSpec:
    """What replaces softmax attention.

    - `gate`: gate family of the recurrence; see `linearize.liger.gates`.
    - `window`: keys the softmax window sees, the current token included; at least 2.
    - `sinks`: first tokens of each sequence that stay visible beside the window.
    - `mix`: how recurrence and window are combined; one of `MIXES`.
    - `mix_weight`: weight of the recurrence for `mix="fixed"`, in [0, 1]. Liger uses 0.5.
    - `gate_normalizer`: divides the log gate; None = the family's default (16 for `gla`).
    - `gate_source`: projection that gates are pooled from; one of `GATE_SOURCES`.
    - `gate_lower_bound`: least decay factor per token, in [0, 1); for gate `hgrn2`.
    - `slots`: M of gate `gsa`; its two states are [K, M] and [M, V].
    - `keep_softmax`: layers left as full softmax attention; negative counts from the end.
    - `every`: the last of every so many layers is left as softmax too, e.g. 7, 15, 23, ... with 8.
    - `prefix`: how the prompt is read; one of `PREFIXES`. "jrt" needs a recurrence.
    - `prefix_rank`: rank of what the encoder's keys and values differ from the layer's own; 0 =
      nothing, only its weight and decay are learned.

    Raises `UsageError` for a value outside its range.
    """

    gate: str = "gla"
    window: int = 64
    sinks: int = 0
    mix: str = "learned"
    mix_weight: float = 0.5
    gate_normalizer: float | None = None
    gate_source: str = "key"
    gate_lower_bound: float = 0.0
    slots: int = 64
    keep_softmax: tuple[int, ...] = ()
    every: int | None = None
    prefix: str = "none"
    prefix_rank: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_softmax", tuple(int(i) for i in self.keep_softmax))
        if self.mix not in MIXES:
            raise UsageError(f"mix={self.mix!r} is not known{suggest(str(self.mix), MIXES)}")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 2:
            raise UsageError(
                f"window={self.window!r}: the window counts the token itself and one "
                "or more before it; give an integer of at least 2 (64 is the default)"
            )
        if isinstance(self.sinks, bool) or not isinstance(self.sinks, int) or self.sinks < 0:
            raise UsageError(
                f"sinks={self.sinks!r} must be an integer of at least 0 (4 is usual; 0 = none)"
            )
        if not 0.0 <= self.mix_weight <= 1.0:
            raise UsageError(f"mix_weight={self.mix_weight!r} is outside [0, 1]; Liger uses 0.5")
        if self.gate_normalizer is not None and not self.gate_normalizer > 0:
            raise UsageError(
                f"gate_normalizer={self.gate_normalizer!r} must be positive; "
                "leave it out for the family's default"
            )
        if self.gate_source not in GATE_SOURCES:
            raise UsageError(
                f"gate_source={self.gate_source!r} is not known"
                f"{suggest(str(self.gate_source), GATE_SOURCES)}"
            )
        if not 0.0 <= self.gate_lower_bound < 1.0:
            raise UsageError(
                f"gate_lower_bound={self.gate_lower_bound!r} is outside [0, 1); 0 is the default"
            )
        if isinstance(self.slots, bool) or not isinstance(self.slots, int) or self.slots < 1:
            raise UsageError(
                f"slots={self.slots!r} must be an integer of at least 1 (64 is the default)"
            )
        if self.every is not None and (
            isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 2
        ):
            raise UsageError(
                f"every={self.every!r} must be an integer of at least 2: every so many layers one "
                "stays softmax; leave it out to keep none"
            )
        if self.prefix not in PREFIXES:
            raise UsageError(
                f"prefix={self.prefix!r} is not known{suggest(str(self.prefix), PREFIXES)}"
            )
        if self.prefix != "none" and self.mix == "window":
            raise UsageError(
                f"prefix={self.prefix!r} encodes the prompt into the recurrence's state, and "
                "mix='window' has none; use mix='learned' or 'fixed'"
            )
        if self.prefix != "none" and self.mix in DELAYED:
            raise UsageError(
                f"prefix={self.prefix!r} puts the whole prompt into the state, and mix="
                f"{self.mix!r} only what has left the window; use mix='learned' or 'fixed'"
            )
        if isinstance(self.prefix_rank, bool) or not (
            isinstance(self.prefix_rank, int) and self.prefix_rank >= 0
        ):
            raise UsageError(
                f"prefix_rank={self.prefix_rank!r} must be an integer of at least 0 (16 is the "
                "default)"
            )

    def softmax_layers(self, num_layers: int) -> frozenset[int]:
        """Layers kept as softmax, as non-negative indices. Raises `UsageError` if out of range."""
        for i in self.keep_softmax:
            if not -num_layers <= i < num_layers:
                raise UsageError(
                    f"keep_softmax={i} is out of range: the model has {num_layers} layers "
                    f"(0 to {num_layers - 1})"
                )
        if self.every is not None and self.every > num_layers:
            raise UsageError(
                f"every={self.every} keeps no layer: the model has {num_layers} layers"
            )
        spread = range(self.every - 1, num_layers, self.every) if self.every else ()
        return frozenset(i % num_layers for i in self.keep_softmax) | frozenset(spread)

    def resolved(self, num_layers: int) -> LigerSpec:
        """The same layers named one by one, as the config of a converted model stores them."""
        kept = tuple(sorted(self.softmax_layers(num_layers)))
        return replace(self, keep_softmax=kept, every=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back."""
        return {**asdict(self), "keep_softmax": list(self.keep_softmax)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LigerSpec:
        """Read what `to_dict` wrote. Raises `UsageError` naming an unknown key."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise UsageError(f"unknown LigerSpec field '{key}'{suggest(key, known)}")
        return cls(**values)
