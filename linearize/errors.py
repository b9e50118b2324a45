"""What a person sees when something they asked for cannot be done.

Every message names the value, the limit and the remedy. Exit codes of both commands:

==== =========================================================
0    done
1    unexpected failure (a bug: please report it), or another process of the run died
2    usage: bad option, unknown recipe key, wrong field name
3    input missing, unreadable or unsupported
4    a numerical check failed, or the loss became NaN
5    the output cannot be written (not empty, disk full)
130  interrupted; what was done is saved
==== =========================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LinearizeError(ValueError):
    """Base of all errors caused by input rather than by a bug. `exit_code` is the process's."""

    exit_code = 1


class UsageError(LinearizeError):
    """An option, recipe key or argument is wrong."""

    exit_code = 2


class InputError(LinearizeError):
    """A model, data set or file is missing, unreadable or unsupported."""

    exit_code = 3


class CheckError(LinearizeError):
    """A numerical check failed: NaN loss, or a saved model that does not match its source."""

    exit_code = 4


class OutputError(LinearizeError):
    """The output directory cannot be written."""

    exit_code = 5


class Interrupted(LinearizeError):
    """Ctrl-C or SIGTERM: everything done so far has been saved."""

    exit_code = 130


class ProcessLost(LinearizeError):
    """Another process of the same run died; the last checkpoint is whole."""


def suggest(name: str, known: Iterable[str], *, most: int = 12) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or the list of at most `most` names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near.sort(key=lambda other: sorted(other) != sorted(name))  # swapped letters: the usual slip
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= most else ""
