"""One HTML file that says what was done and measured: numbers, plots, samples, settings.

Self-contained (inline SVG, no scripts, nothing fetched), readable on light and dark and on a phone;
behind every plot are its numbers. A kind of results is a file here and a row of `_SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2

from linearize.errors import InputError, UsageError

from . import benches, recall, repetition, runs, tasks
from .page import INSTALL, Section, page, save
from .sources import KINDS, RUNS, Source, read

__all__ = ["INSTALL", "Source", "read", "render", "write"]
NAME = "report.html"
# Kind -> its section, of one source; `tasks` puts all evaluations into one.
_SECTIONS: dict[str, Callable[[Source], Section]] = {
    "conversion": runs.section,
    "retrofit": runs.section,
    "finetuning": runs.section,
    "recall": recall.section,
    "repetition": repetition.section,
    "bench": benches.section,
}


def write(*paths: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of directories and files that the commands wrote; returns its path.

    - `out`: the HTML file. Default: `report.html` in the directory, where one is given.

    Metrics and samples of a run are optional, and the report says where they are absent. Plots
    need matplotlib; without it the report has the tables and says how to get them. The same input
    gives the same bytes.

    Raises `UsageError` for several paths without `out`, `InputError` if something is missing,
    damaged or not what the commands write, `OutputError` if the report cannot be written.
    """
    if out is None:
        if len(paths) != 1:
            raise UsageError(f"a report of {len(paths)} needs a file to be written to: --out FILE")
        one = Path(paths[0])
        out = one / NAME if not one.is_file() else one.with_suffix(".html")
    return save(Path(out), render(read(paths)))


def render(sources: Sequence[Source]) -> str:
    """The page as text. Raises `InputError` naming a file that lacks something."""
    sections = list(_sections(sources))
    if len(sections) == 1:
        return page(sections[0].title, sections)
    about = "; ".join(
        f"{what}: {', '.join(source.name for source in some)}"
        for kind, what in KINDS.items()
        if (some := [source for source in sources if source.kind == kind])
    )
    return page(f"Report of {len(sources)} results", sections, about=about)


def _sections(sources: Sequence[Source]) -> Iterator[Section]:
    evaluations = [source for source in sources if source.kind == "tasks"]
    for kind in KINDS:
        some = [source for source in sources if source.kind == kind]
        if kind == "tasks" and some:
            yield _made(lambda _: tasks.section(evaluations, sources), some)
        for source in some if kind != "tasks" else ():
            made = _made(_SECTIONS[kind], [source])
            # Runs are called after their bases, which several may share.
            alone = kind not in RUNS or len(sources) == 1
            yield made if alone else replace(made, title=f"{made.title}: {source.name}")


def _made(section: Callable[[Source], Section], of: Sequence[Source]) -> Section:
    files = ", ".join(str(source.path) for source in of)
    try:
        return section(of[0])
    except KeyError as error:
        raise _damaged(files, f"no {error}") from error
    except jinja2.UndefinedError as error:
        raise _damaged(files, str(error)) from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(files, str(error)) from error


def _damaged(files: str, what: str) -> InputError:
    return InputError(f"{files} is incomplete or damaged ({what}); was it edited by hand?")
