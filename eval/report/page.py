"""One HTML file out of sections: self-contained, no scripts, nothing fetched."""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from linearize import figures
from linearize.errors import OutputError

INSTALL = 'pip install "linearize[plots]"'


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading."""

    title: str
    body: Markup


@dataclass(frozen=True)
class Figure:
    """A drawing, and what it was drawn from as CSV behind a link."""

    title: str
    caption: str
    svg: Markup
    file: str
    csv: str


def figure(
    key: str,
    title: str,
    caption: str,
    draw: Callable[[Any], str],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> Figure | None:
    """A figure, or None without matplotlib.

    - `key`: different for every figure of a page.
    - `draw`: gets the module `plots`, returns SVG.
    - `columns`, `rows`: every number that is drawn.
    """
    if not have_plots():
        return None
    from .. import plots

    key = re.sub(r"[^\w-]+", "-", key)
    svg = draw(plots)
    # Ids of drawings of the same kind are the same, and a page has one name space.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return Figure(title, caption, Markup(svg), f"{key}.csv", text.getvalue())


def curves(
    key: str,
    title: str,
    caption: str,
    lines: dict[str, Sequence[tuple[float, ...]]],
    *,
    x: str,
    y: str,
    **how: Any,
) -> Figure | None:
    """A figure of lines of points (x, y) or (x, y, standard error); `how`: of `plots.curves`."""
    rows = [(name, *point) for name, points in lines.items() for point in points]
    columns = ["line", x, y, "standard error"][: max(map(len, rows), default=3)]
    return figure(
        key,
        title,
        caption,
        lambda plots: plots.curves(lines, xlabel=x, ylabel=y, **how),
        columns,
        rows,
    )


def template(name: str, **values: Any) -> Markup:
    """A template of this folder, filled."""
    return Markup(_environment().get_template(name).render(values))


def page(title: str, sections: Sequence[Section], *, about: str = "") -> str:
    """The whole file as text."""
    return template(
        "page.html",
        title=title,
        about=about,
        sections=sections,
        have_plots=have_plots(),
        install=INSTALL,
    )


def have_plots() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def save(path: Path, text: str) -> Path:
    """Write a page; returns its path. Raises `OutputError` if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the report {path} cannot be written: {error.strerror}") from error
    return path


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(
            lambda name: resources.files(__package__).joinpath(name).read_text("utf-8")
        ),
    )
    environment.filters |= {
        "bytes": figures.bytes_text,
        "short": lambda x: f"{x:.3g}" if isinstance(x, float) else str(x),
        "data": lambda text: "data:text/csv;charset=utf-8," + quote(text),
    }
    return environment
