"""Sections of benches: the table that was printed, and time and memory over length."""

from __future__ import annotations

import importlib

from linearize.errors import InputError, suggest

from ..bench import drawing
from ..bench.registry import BENCHES
from .page import Section, curves, template
from .sources import Source


def section(source: Source) -> Section:
    """Table, figures and the machine. Raises `InputError` for a bench that is not known."""
    values = source.values
    name = values["bench"]
    if name not in BENCHES:
        raise InputError(f"{source.path}: there is no bench '{name}'{suggest(name, BENCHES)}")
    module = importlib.import_module(f"linearize.eval.bench.{BENCHES[name].module}")
    drawn = [
        curves(
            f"{source.name}-{panel.title}",
            panel.title.capitalize(),
            "Both axes are logarithmic.",
            lines,
            x=panel.x,
            y=panel.unit,
            log_x=True,
            log_y=True,
        )
        for panel in getattr(module, "PANELS", ())
        if (lines := drawing.lines(panel, values["records"]))
    ]
    body = template(
        "bench.html",
        values=values,
        columns=module.COLUMNS,
        rows=[cells for record in values["records"] for cells in module.rows(record)],
        figures=[one for one in drawn if one],
    )
    return Section(f"Bench {name}: {values.get('title', source.name)}", body)
