"""Pictures of a wave: every cell drawn, any token shown, bad files refused before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pytest

from linearize.decoding.recurrent_depth import trace
from linearize.errors import InputError, OutputError, UsageError

STEPS = [
    {"first": 3, "tokens": [0], "spent": [2], "frozen": 0},
    {"first": 3, "tokens": [0, 1], "spent": [4, 2], "frozen": 1},
    {"first": 4, "tokens": [2, 3], "spent": [4, 2], "frozen": 2},
]
WORDS = ["<$x$>", "\n", "中\x07", "$"]


def test_html_has_a_cell_for_every_position_and_step(tmp_path: Path) -> None:
    trace.save(STEPS, tmp_path / "wave.html", word=WORDS.__getitem__)
    page = (tmp_path / "wave.html").read_text(encoding="utf-8")
    cells = re.findall(r'<rect x="(\d+)" y="(\d+)"', page)
    assert cells == [("0", "0"), ("12", "0"), ("12", "12"), ("24", "12"), ("24", "24")]
    assert page.count("final") == 3
    assert "&lt;$x$&gt;" in page
    assert "<$x$>" not in page


def test_png_shows_any_token(tmp_path: Path) -> None:
    trace.save(STEPS, tmp_path / "wave.png", word=WORDS.__getitem__)
    assert matplotlib.image.imread(tmp_path / "wave.png").std() > 0


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png or \.html"):
        trace.check(tmp_path / "wave.pdf")
    with pytest.raises(OutputError, match="there is no directory"):
        trace.check(tmp_path / "nowhere" / "wave.png")
    with pytest.raises(InputError, match="ended with its first token"):
        trace.save([], tmp_path / "wave.html")
