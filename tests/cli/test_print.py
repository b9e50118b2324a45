"""What commands show can be copied: no path is ever broken over two lines."""

from __future__ import annotations

import pytest
from rich.text import Text

from cli._print import facts, table

PATH = "/a/long-way" * 12


def test_piped_facts_keep_one_line_per_value(capsys: pytest.CaptureFixture[str]) -> None:
    facts({"model": PATH, "use it": f"decode {PATH} --prompt ..."})
    assert capsys.readouterr().out == f"model   {PATH}\nuse it  decode {PATH} --prompt ...\n"


def test_facts_on_a_terminal_wrap_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    facts({"note": "seven words " * 6, "model": PATH})
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert [len(line) <= 40 for line in lines] == [True, True, True, False]
    assert lines[1].startswith("       words")
    assert lines[3] == f"model  {PATH}"


def test_piped_tables_have_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    table("Title", ["model", *map(str, range(12))], [["a-long-name" * 4, *["12.3 ± 4.5"] * 12]])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 4
    assert lines[3].split("  ")[0] == "a-long-name" * 4
