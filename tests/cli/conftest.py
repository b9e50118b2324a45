"""Running a command as its console script does, without paying for a new process each time."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command, Ended

from linearize.cli import decode, main


@pytest.fixture
def linearize_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`linearize_command("inspect", "embedded")` -> `Ended`."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["linearize", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        return Ended(ended.value.code or 0, out, err)

    return run


@pytest.fixture(name="run")
def decode_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shared: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run `decode ARGS` on a real model; returns exit code, stdout and stderr."""

    def run(
        *arguments: str | float | Path, model: str = str(shared / "data" / "models" / "stories260K")
    ) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["decode", model, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            decode.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def stories(shared: Path, tmp_path: Path) -> Path:
    """A writable copy of a real pretrained model of 260,000 parameters."""
    source = shared / "data" / "models" / "stories260K"
    target = tmp_path / "stories260K"
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
    return target


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small corpus of 40 documents."""
    path = tmp_path / "text.txt"
    story = "Once upon a time there was a little girl named Lily. She had a big red ball. "
    path.write_text("\n<|endoftext|>\n".join(f"{i}: {story * 6}" for i in range(40)))
    return path
