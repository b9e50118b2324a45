"""How much texts repeat themselves, in one call, and every metric behind it by name.

| name | what | home, with definition and source |
| --- | --- | --- |
| `rep_n`, `seq_rep_n`, `rep_w`, `rep_r` | repeated n-grams, recent tokens, bigrams | `ngrams` |
| `rep_n_by_position` | where in a text n-grams repeat | `ngrams` |
| `diversity`, `uniq` | what is left when nothing repeats; vocabulary | `ngrams` |
| `rep_s`, `rep_sen`, `sentence_repetition` | repeated lines and sentences | `sentences` |
| `tr_n`, `tr_s` | repeated structure of code | `code` |
| `compile_rate`, `egp` | code that compiles, outputs that end | `code` |
| `ranking`, `aggregate` | rank of the right token, first choices that repeat | `ranking` |
| `measure_self_reinforcement`, `curves` | TP, IP, WR over copies | `self_reinforcement` |
| `released_table` | the same as DITTO's script tabulates it | `self_reinforcement_released` |
| `mauve_score` | distance to human text | `mauve_score` |

All are shares in [0, 1] unless their docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from linearize.errors import UsageError

from .code import compile_rate, compiles, egp, lexemes, tr_n, tr_s
from .mauve_score import mauve_score
from .ngrams import diversity, rep_n, rep_n_by_position, rep_r, rep_w, seq_rep_n, uniq
from .ranking import aggregate, ranking
from .self_reinforcement import SelfReinforcement, curves, measure_self_reinforcement
from .self_reinforcement_released import NextTokens, released_table
from .sentences import rep_s, rep_sen, sentence_repetition, sentences

__all__ = [
    "NextTokens",
    "SelfReinforcement",
    "aggregate",
    "compile_rate",
    "compiles",
    "curves",
    "diversity",
    "egp",
    "lexemes",
    "mauve_score",
    "measure_self_reinforcement",
    "ranking",
    "released_table",
    "rep_n",
    "rep_n_by_position",
    "rep_r",
    "rep_s",
    "rep_sen",
    "rep_w",
    "repetition",
    "sentence_repetition",
    "sentences",
    "seq_rep_n",
    "tr_n",
    "tr_s",
    "uniq",
]


def repetition(
    texts: Sequence[str],
    *,
    language: str | None = None,
    prompts: Sequence[str] | None = None,
    tokens: Sequence[Sequence[Hashable]] | None = None,
) -> dict[str, float]:
    """The figures to compare decoders and models by; shares in [0, 1].

    Args:
        texts: what was generated, without its prompt; may be empty strings, or none at all.
        language: of code, a row of `decoding.repetition.languages.LANGUAGES`; None for prose.
        prompts: what each text continues. Nothing that begins in a prompt is counted, but code is
            parsed and compiled with it.
        tokens: what n-grams and windows are made of, e.g. the generated ids; without, words between
            blanks.

    Returns:
        `rep-2`, `rep-3`, `rep-4`, `rep-w` (window 16), `rep-r`, `rep-s` (lines), `rep-sen`
        (sentences), `diversity`; with a language also `tr-n` (n = 4), `tr-s`, `compile`. Lower is
        better except for the last of each.

    Raises `UsageError` for lists of different lengths or an unknown language, `InputError` for a
    grammar that is not installed.
    """
    for name, others in (("prompts", prompts), ("token sequences", tokens)):
        if others is not None and len(others) != len(texts):
            raise UsageError(f"{len(others)} {name} for {len(texts)} texts; give one each")
    units = [text.split() for text in texts] if tokens is None else tokens
    found = {f"rep-{n}": rep_n(units, n) for n in (2, 3, 4)}
    found |= {
        "rep-w": rep_w(units),
        "rep-r": rep_r(units),
        "rep-s": rep_s(texts),
        "rep-sen": sentence_repetition(texts),
        "diversity": diversity(units),
    }
    if language is not None:
        before = [""] * len(texts) if prompts is None else prompts
        whole = [prompt + text for prompt, text in zip(before, texts, strict=True)]
        starts = [len(prompt) for prompt in before]
        found["tr-n"] = tr_n(whole, language, starts=starts)
        found["tr-s"] = tr_s(whole, language, starts=starts)
        found["compile"] = compile_rate(whole, language)
    return found
