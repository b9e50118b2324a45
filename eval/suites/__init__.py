"""Suites: a model, some prompts, several ways to choose tokens, one table. By name in `SUITES`.

A suite is called as `suite(model, tokenizer, groups, ways, out, ...)`; see `repetition.run`.
"""

from .repetition import run as _repetition

SUITES = {"repetition": _repetition}
