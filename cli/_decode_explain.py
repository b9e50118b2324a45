"""`decode --explain`: which tokens a remedy weakened, why, and by how much."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

_SHOWN = 3  # tokens per change, the most weakened first


class Explanation:
    """Hears of penalties (`on_penalty` of `generate`) and tells of them per prompt."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.penalties: dict[int, list[Any]] = defaultdict(list)

    def __call__(self, prompt: int, penalty: Any) -> None:
        self.penalties[prompt].append(penalty)

    def record(self, prompt: int) -> list[dict[str, Any]]:
        """As JSON tells it. A logit of minus infinity (an impossible token) is null."""
        return [
            {
                "remedy": p.remedy,
                "position": p.position,
                "reason": p.reason,
                "tokens": [
                    {"id": t, "text": self._piece(t), "before": _finite(b), "after": _finite(a)}
                    for t, b, a in zip(p.tokens, p.before, p.after, strict=True)
                ],
                "would_have_been": p.would_have_been,
                "now": p.now,
            }
            for p in self.penalties[prompt]
        ]

    def show(self, prompt: int, prompt_ids: list[int], result: Any, stop: list[str]) -> None:
        """The text with what was avoided in it, then a table of the changes that mattered."""
        from rich.console import Console

        from ._print import table

        console = Console(highlight=False, markup=False, soft_wrap=True)
        console.print(self._text(prompt, prompt_ids, result, stop, console.is_terminal))
        moved = [p for p in self.penalties[prompt] if p.would_have_been != p.now]
        silent = len(self.penalties[prompt]) - len(moved)
        if moved:
            table(
                "What was weakened",
                ["token", "remedy", "why", "logits", "instead"],
                [self._row(p, result.ids) for p in moved],
            )
        print(
            f"{len(moved)} changes moved the most likely token, {silent} did not"
            + (" (all of them with --json)" if silent else "")
        )

    def _text(
        self, prompt: int, prompt_ids: list[int], result: Any, stop: list[str], colour: bool
    ) -> Any:
        from rich.text import Text

        from linearize.decoding.text import Continuation

        avoided: dict[int, int] = {}
        for p in self.penalties[prompt]:
            if p.would_have_been != p.now:
                avoided.setdefault(p.position, p.would_have_been)
        text = Text()
        grown = Continuation(prompt_ids, self.tokenizer, stop=stop, eos=())
        for position, token in enumerate(result.ids):
            piece = grown.add(token)
            if avoided.get(position, token) == token:
                text.append(piece)
                continue
            was = self._piece(avoided[position])
            if colour:
                text.append(was, "red strike").append(piece, "bold green")
            else:
                text.append(f"[-{was}-]{{+{piece}+}}")
            if grown.finish is not None:
                break
        return text.append(grown.close())

    def _row(self, p: Any, ids: list[int]) -> tuple[str, ...]:
        drops = sorted(zip(p.tokens, p.before, p.after, strict=True), key=lambda c: c[2] - c[1])
        logits = [f"{self._piece(t)!r} {b:.2f} → {a:.2f}" for t, b, a in drops[:_SHOWN]]
        more = len(drops) - _SHOWN
        return (
            str(p.position),
            p.remedy,
            p.reason,
            ", ".join(logits) + (f", {more} more" if more > 0 else ""),
            f"{self._piece(p.would_have_been)!r} → {self._piece(ids[p.position])!r}",
        )

    def _piece(self, token: int) -> str:
        # Between two others, because a decoder strips the leading blank of a first token.
        comma = self.tokenizer("a,", add_special_tokens=False).input_ids[-1]
        both = self.tokenizer.decode([comma, token])
        return both.removeprefix(self.tokenizer.decode([comma]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
