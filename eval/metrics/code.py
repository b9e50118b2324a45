"""Repetition of structure in code, and whether the code is whole.

From RPG ("Rethinking Repetition Problems of LLMs in Code Generation", ACL 2025), section 5. Every
value is a share in [0, 1].

- The paper counts grammar: TR-N over grammar elements, TR-S over statements, both with names and
  literals collapsed to their kind. Here they are read off a tree-sitter tree.
- Its public scripts count text: lexemes of Python, and lines. `released=True` is what they print,
  divided by 100.
- A decoder cannot change its prompt, so each measure can leave the prompt out: `starts` are offsets
  in characters, one per text or one for all; the whole text is read, and what begins at or after
  the offset is counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence

from linearize.decoding.repetition.grammar import Level, elements, statements, well_formed
from linearize.errors import InputError, UsageError

from .ngrams import mean, ngrams, rep_n, repeated, repeated_share
from .sentences import rep_s


def tr_n(
    texts: Sequence[str],
    language: str = "python",
    *,
    n: int = 4,
    starts: int | Sequence[int] = 0,
    pooled: bool = False,
    released: bool = False,
) -> float:
    """TR-N: `1 - distinct / total` n-grams of grammar elements, mean over texts; published: n = 4.

    Texts with fewer than n elements are left out. `pooled`: see `tr_s`. With `released` the n-grams
    are of `lexemes` and the average is over all n-grams of all texts; Python only, and the prompt
    counts.

    Raises `UsageError` for an unknown language and `starts` that do not belong to the texts,
    `InputError` for a grammar (or, released, parso) that is not installed.
    """
    if released:
        _refuse(language, starts)
        return rep_n(map(lexemes, texts), n)
    found = (ngrams(elements(t, language, start=at), n) for t, at in _with_starts(texts, starts))
    return _average(found, pooled)


def tr_s(
    texts: Sequence[str],
    language: str = "python",
    *,
    level: Level = "statement",
    starts: int | Sequence[int] = 0,
    pooled: bool = False,
    released: bool = False,
) -> float:
    """TR-S: `1 - distinct / total` statements, mean over texts; nested statements count too.

    Statements are equal if their signatures are (`decoding.repetition.grammar.statements`): at
    level "statement", the paper's, all expressions are alike, so that two assignments are one
    statement twice; at level "terminal" only names, numbers and strings are. Texts without a
    statement are left out.
    `pooled`: the share of all statements of all texts that repeat an earlier one of their own text,
    so that a text counts by its statements, and not as much as any other.
    With `released` statements are raw lines (`sentences.rep_s`), and the prompt counts.

    Raises as `tr_n` does.
    """
    if released:
        _refuse("python", starts)
        return rep_s(texts, released=True)
    found = (
        [s.signature for s in statements(text, language, level=level) if s.start >= at]
        for text, at in _with_starts(texts, starts)
    )
    return _average(found, pooled)


def lexemes(text: str) -> list[str]:
    """Strings of the tokens of Python code as RPG's released scripts see them.

    By parso under the rules of Python 3.7 (recorded with parso 0.8.7); the DEDENT and ENDMARKER
    tokens at the end are dropped, NEWLINE and INDENT (an empty string) stay, comments are no
    tokens.

    Raises `InputError` if parso is not installed.
    """
    try:
        from parso.python.tokenize import tokenize
        from parso.utils import parse_version_string
    except ImportError as error:
        raise InputError(
            'the released Python metrics need parso; install it with: pip install "linearize'
            '[metrics]"'
        ) from error
    tokens = list(tokenize(text, version_info=parse_version_string("3.7")))
    while tokens and tokens[-1].type.name in ("DEDENT", "ENDMARKER"):
        tokens.pop()
    return [token.string for token in tokens]


def compiles(text: str, language: str = "python", *, released: bool = False) -> bool:
    """Whether a program is whole.

    Python: the interpreter's `compile` accepts it (nothing is run). Other languages: tree-sitter
    parses it without an ERROR or MISSING node, which knows syntax only. With `released` the text up
    to its first line end is skipped, as RPG's scripts do.

    Raises as `tr_n` does.
    """
    if released and "\n" in text:
        text = text.split("\n", 1)[1]
    if language != "python":
        return well_formed(_bytes(text), language)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the code that is measured
            compile(text, "<text>", "exec", dont_inherit=True)
    # Besides syntax: null bytes, lone surrogates, nesting that no compiler follows, huge numbers.
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def compile_rate(
    texts: Iterable[str], language: str = "python", *, released: bool = False
) -> float:
    """CCP: share of texts that compile; arguments as in `compiles`."""
    return mean(compiles(text, language, released=released) for text in texts)


def egp(outputs: Iterable[Sequence[int]], eos: int | Collection[int]) -> float:
    """EGP: share of outputs (token ids) that contain an end-of-text token.

    The released script looks in prompt and output; give either.
    """
    ends = {eos} if isinstance(eos, int) else set(eos)
    return mean(not ends.isdisjoint(ids) for ids in outputs)


def _average(found: Iterable[Sequence[Hashable]], pooled: bool) -> float:
    """Repeated share of lists of things: mean over lists, or of all things together."""
    found = [things for things in found if things]
    if pooled:
        total = sum(map(len, found))
        return sum(map(repeated, found)) / total if total else 0.0
    return mean(map(repeated_share, found))


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")  # a lone surrogate is no reason to fail


def _with_starts(texts: Sequence[str], starts: int | Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Each text and its offset in bytes, as trees count."""
    each = [starts] * len(texts) if isinstance(starts, int) else list(starts)
    if len(each) != len(texts):
        raise UsageError(f"{len(each)} starts for {len(texts)} texts; give one, or one each")
    for text, at in zip(texts, each, strict=True):
        yield _bytes(text), len(_bytes(text[:at]))


def _refuse(language: str, starts: int | Sequence[int]) -> None:
    if language != "python":
        raise UsageError(f"the released metrics know Python only, not '{language}'")
    if starts != 0:
        raise UsageError("the released metrics count the prompt; leave starts out")
