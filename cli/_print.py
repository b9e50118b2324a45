"""What commands put on stdout: one JSON object, or short tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_PIPED = 1000  # columns: wider than any table


@contextmanager
def results_only(as_json: bool) -> Iterator[None]:
    """Keep stdout for the JSON object: what libraries print meanwhile goes to stderr."""
    stdout = sys.stdout
    if as_json:
        sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = stdout


def quiet_libraries() -> None:
    """Leave stderr to what a person needs to know."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading weights
    # peft 0.21 reads an attribute that transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)


def emit(values: Any) -> None:
    """One JSON object on one line."""
    print(json.dumps(values, default=str))


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[str] = ()
) -> None:
    """A table; columns after the first are right-aligned, but for those in `words`."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        side = "right" if index and column not in words else "left"
        drawn.add_column(column, justify=side, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    _console().print(drawn)


def facts(rows: dict[str, Any]) -> None:
    """Aligned `name  value` lines.

    On a terminal, long values continue below themselves. No word is ever broken, so that a
    path can be copied; what is piped keeps one line per value.
    """
    from rich.text import Text

    console = _console()
    indent = 2 + max(map(len, rows), default=0)
    room = console.width - indent
    for name, value in rows.items():
        lines = [str(value)]
        if console.is_terminal:
            lines = wrap(lines[0], max(room, 1), break_long_words=False, break_on_hyphens=False)
        text = ("\n" + " " * indent).join(lines)
        console.print(Text.assemble((name.ljust(indent), "bold"), text), soft_wrap=True)


def _console() -> Console:
    """As wide as the terminal; what is piped is as wide as it needs to be."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPED
    return console


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for people; yields what to call with the number done and the total."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
