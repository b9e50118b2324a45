"""RPG: penalise the start of another copy of a grammatical pattern (arXiv 2505.10402).

From the paper: structure is compared on the level of the grammar, the start of a repeat is what is
penalised, and more with every copy. Chosen here, because the paper leaves it open or its public
code does otherwise (that one is `rpg_released`):

- structure comes from tree-sitter, on every nesting level around the end of the text;
- the penalty is subtracted from logits, so that their sign does not matter: `strength` nats for
  every copy beyond a limit that is the lower, the more alike the copies are;
- loops inside one line, string or comment, which no grammar sees, are found as verbatim
  repetition of tokens;
- a text that keeps repeating itself has nothing more to say: where it could end, its end gains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from linearize.errors import UsageError

from . import languages, vocabulary
from .fences import Fences
from .patterns import Run
from .periods import Periods
from .rows import Change, RowProcessor
from .source import Source

Mode = Literal["nats", "centred", "signed"]
LONGEST = 64  # tokens in the longest verbatim period
MEMORY = 64  # tokens for which a loop inside a line, string or comment is remembered
RUNAWAY = 48  # looped tokens after which a text may end anywhere, complete or not


@dataclass
class _State:
    """One row: its code, if it has any, and the end of its token stream."""

    fences: Fences
    source: Source | None
    periods: Periods
    words: Periods | None = None  # of the open string or comment, blanks left out
    pending: list[int] = field(default_factory=list)
    hot: bool = False  # a run ended at the last boundary
    verbatim: list[tuple[list[int], int, str]] = field(default_factory=list)  # at the end
    since: int = MEMORY  # tokens since there was one


class RPG(RowProcessor[_State]):
    """Repetition penalty based on grammar, for `model.generate(logits_processor=[...])`.

    Args:
        tokenizer: of the model; any of transformers.
        language: "auto" (the language of the open code fence, else the prompt's), or a name of
            `languages.LANGUAGES`.
        strength: nats per copy (mode "nats"); in the other modes the paper's lambda is
            `exp(-strength)`.
        min_copies: this many copies in a row start the penalty, if they differ in names, numbers
            and strings only. One less is enough where they are equal word for word (then they may
            also stand apart, within 16 statements, and the last one be unfinished), two less within
            64 tokens after a loop inside a line, string or comment; twice as many are needed where
            only the kinds of the statements agree.
        min_verbatim: the same for runs of tokens inside a line, string or comment.
        max_count: the penalty stops growing after this many copies.
        mode: "nats" subtracts; "centred" shrinks the distance to the mean logit by lambda per
            copy; "signed" multiplies positive logits and divides negative ones (CTRL's rule).
        eos_boost: what the end-of-text tokens gain for each penalised copy, in units of
            `strength`, where the text could end; 0 leaves them alone.
        eos_token_id: end-of-text tokens; None takes the tokenizer's.
        count_prompt: copies in the prompt count too; with "repeated" those of statements and
            elements that the text has repeated once more.

    Raises `UsageError` for a value out of range, `InputError` for a grammar that is not installed.
    """

    name = "rpg"

    def __init__(
        self,
        tokenizer: Any,
        *,
        language: str = "auto",
        strength: float = 4.0,
        min_copies: int = 3,
        min_verbatim: int = 3,
        max_count: int = 30,
        mode: Mode = "nats",
        eos_boost: float = 4.0,
        eos_token_id: int | list[int] | None = None,
        count_prompt: bool | Literal["repeated"] = "repeated",
        **row: Any,
    ) -> None:
        if language != "auto":
            languages.parser(language)
        if not strength >= 0:
            raise UsageError(f"strength={strength:g} is negative; 0 switches the penalty off")
        for name, value in (("min_copies", min_copies), ("min_verbatim", min_verbatim)):
            if value < 2:
                raise UsageError(f"{name}={value} is below 2; one copy is no repetition")
        if mode not in ("nats", "centred", "signed"):
            raise UsageError(f"mode '{mode}' is not known; there are nats, centred and signed")
        if count_prompt not in (True, False, "repeated"):
            raise UsageError(
                f"count_prompt='{count_prompt}' is not known; there are true, false and repeated"
            )
        self.vocabulary = vocabulary.of(tokenizer)
        self.language = language
        self.strength = strength
        self.min_copies, self.min_verbatim, self.max_count = min_copies, min_verbatim, max_count
        self.mode, self.eos_boost, self.count_prompt = mode, eos_boost, count_prompt
        ends = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        self.eos = torch.tensor(ends, dtype=torch.int64)
        super().__init__(tokenizer, **row)

    def start(self, prompt: list[int]) -> _State:
        text = self.vocabulary.text(prompt)
        if self.vocabulary.leading_blank and text.startswith(b" "):
            text = text[1:]
        fences = Fences(self.language, text)
        periods = Periods(LONGEST)
        if self.count_prompt is True:
            for token in prompt:
                periods.append(token)
        state = _State(fences, fences.source(self.count_prompt), periods)
        state.verbatim = list(self._verbatim(state))
        return state

    def extend(self, state: _State, token: int) -> None:
        state.pending.append(token)

    def fork(self, state: _State) -> _State:
        return _State(
            state.fences.fork(),
            state.source and state.source.fork(),
            state.periods.fork(),
            state.words and state.words.fork(),
            list(state.pending),
            state.hot,
            state.verbatim,
            state.since,
        )

    def changes(self, state: _State, scores: Tensor) -> Iterator[Change]:
        self._catch_up(state)
        if not self.strength:
            return
        lowered: dict[int, tuple[int, str]] = {}  # token -> copies that count, why
        for tokens, count, reason in state.verbatim:
            self._note(lowered, tokens, count, reason)
        runs = self._runs(state)
        for run in runs:
            for tokens in self._openers(state.source, run):
                self._note(lowered, tokens, self._count(run), run.reason)
        gains = list(self._gains(state, runs))
        for token in [*self.eos.tolist(), *(t for tokens, *_ in gains for t in tokens.tolist())]:
            lowered.pop(token, None)
        if lowered:
            yield from self._lower(lowered, scores)
        for tokens, copies, reason in gains:
            tokens = tokens[tokens < len(scores)]
            gain = self.eos_boost * self.strength * copies
            yield Change(tokens, scores[tokens.to(scores.device)] + gain, reason)

    def _catch_up(self, state: _State) -> None:
        for token in state.pending:
            state.periods.append(token)
            piece = self.vocabulary.text([token])
            if state.fences.append(piece):
                state.source = state.fences.source(self.count_prompt)
            elif state.source is not None:
                self._append(state, token, piece)
            state.verbatim = list(self._verbatim(state))
            state.since = 0 if state.verbatim else state.since + 1
        state.pending.clear()

    def _append(self, state: _State, token: int, piece: bytes) -> None:
        before = state.source.scanner.inside
        state.source.append(piece)
        if before is None or state.source.scanner.inside != before:
            state.words = None
        elif alike := self.vocabulary.alike(token):
            state.words = state.words or Periods(LONGEST)
            state.words.append(alike[-1])

    def _verbatim(self, state: _State) -> Iterator[tuple[list[int], int, str]]:
        in_code = state.source is not None and state.source.scanner.inside is None
        for periods in (state.periods, state.words):
            found = periods and periods.run(
                min_copies=self.min_verbatim, min_tokens=2 * self.min_verbatim
            )
            if not found:
                continue
            copies, unit = found
            text = self.vocabulary.text(unit)
            # Whole statements are the grammar's business, indentation is nobody's.
            if not text.strip() or (in_code and b"\n" in text):
                continue
            shown = text.decode(errors="replace")
            count = min(copies - self.min_verbatim + 1, self.max_count)
            tokens = [unit[0]] if periods is state.periods else self.vocabulary.alike(unit[0])
            yield tokens, count, f"{copies} copies of {shown!r}"

    def _runs(self, state: _State) -> list[Run]:
        source = state.source
        if source is None:
            return []
        lines = source.lines.runs(min_copies=self.min_copies)
        boundary = source.scanner.at_boundary
        if source.scanner.inside is not None:
            return lines
        if not boundary and not (self.vocabulary.joins_lines and state.hot):
            return []
        found = source.runs(min_copies=self.min_copies, newline=not boundary)
        if boundary:
            state.hot = bool(found)
            found += source.recent(min_copies=max(2, self.min_copies - 1)) + lines
            found += source.begun()
            if state.since < MEMORY:
                found += source.last()
        return [run for run in found if self._count(run) > 0]

    def _count(self, run: Run) -> int:
        least = self.min_copies
        if run.kind == "shape":
            least *= 2
        elif run.kind == "last":
            least = max(1, least - 2)
        elif run.kind in ("copy", "recent", "begun"):
            least = max(2, least - 1)
        return min(run.copies - least + 1, self.max_count)

    def _gains(self, state: _State, runs: list[Run]) -> Iterator[tuple[Tensor, float, str]]:
        """Tokens that end what repeats itself, and for how many copies they gain."""
        if not self.eos_boost:
            return
        scanner = state.source and state.source.scanner
        # Of these there is no second copy yet.
        excess = sum(self._count(run) for run in runs if run.kind not in ("begun", "last"))
        looped = max(state.periods.looped, state.words.looped if state.words else 0.0)
        if scanner and scanner.inside not in (None, b"\n") and (excess or looped >= 4):
            closing = self.vocabulary.starting(scanner.inside, None, None)
            copies = min(excess + looped // 4, self.max_count)
            yield closing, copies, "a string that repeats itself could end"
        if scanner and excess and (bracket := self._closing(state.source)):
            closing = self.vocabulary.starting(bracket, None, None)
            copies = min(excess, self.max_count) / self.eos_boost
            yield closing, copies, "a list that repeats itself could end"
        if scanner and scanner.inside is None and scanner.at_boundary:
            excess += looped // 4
            if not (excess and state.source.complete()):
                excess = 0
        else:
            excess = 0
        if not excess and looped >= RUNAWAY:
            excess = looped // 8
        if excess and len(self.eos):
            yield self.eos, min(excess, self.max_count), "a text that repeats itself could end here"

    def _closing(self, source: Source) -> bytes | None:
        """The bracket that could close here, after a comma; elsewhere more than it is missing."""
        scanner = source.scanner
        if scanner.inside is not None or scanner.last != b"," or not scanner.closers:
            return None
        bracket = scanner.closers[-1]
        return bracket if source.language.trailing_commas or bracket == b"}" else None

    def _openers(self, source: Source, run: Run) -> Iterator[list[int]]:
        """Tokens with which another copy could begin at the cursor."""
        free = run.kind == "line" or source.scanner.at_boundary
        width = None if free else -1
        if width is None and run.column is not None:
            width = run.column - len(source.blanks.rpartition(b"\n")[2])
        for word in run.starts:
            yield self.vocabulary.starting(word, width, run.column).tolist()

    def _note(
        self, lowered: dict[int, tuple[int, str]], tokens: list[int], count: int, reason: str
    ) -> None:
        for token in tokens:
            if token not in lowered or lowered[token][0] < count:
                lowered[token] = (count, reason)

    def _lower(self, lowered: dict[int, tuple[int, str]], scores: Tensor) -> Iterator[Change]:
        by_reason: dict[tuple[int, str], list[int]] = {}
        for token, why in lowered.items():
            if token < len(scores):
                by_reason.setdefault(why, []).append(token)
        for (count, reason), tokens in by_reason.items():
            index = torch.tensor(tokens, dtype=torch.int64)
            before = scores[index.to(scores.device)].float()
            yield Change(index, self._discounted(before, count, scores), reason)

    def _discounted(self, logits: Tensor, count: int, scores: Tensor) -> Tensor:
        loss = self.strength * count
        if self.mode == "nats":
            return logits - loss
        share = torch.tensor(-loss).exp().item()
        if self.mode == "signed":
            return torch.where(logits > 0, logits * share, logits / share)
        middle = scores[scores.isfinite()].float().mean()
        return torch.minimum(logits, middle + (logits - middle) * share)
