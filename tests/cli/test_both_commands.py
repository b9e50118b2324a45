"""Both commands answer at once, and end as documented."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import Command

from linearize import __version__, recipe

COMMANDS = ["convert", "finetune", "inspect", "merge", "report", "eval", "doctor"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", ["main", "decode"])
@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_is_quick_and_imports_no_torch(module: str, arguments: list[str]) -> None:
    began = time.perf_counter()
    done = python(
        f"import sys; sys.argv = ['x', *{arguments}]\n"
        f"from linearize.cli import {module}\n"
        f"try:\n    {module}.main()\n"
        "finally:\n    assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert seconds < 5, "half a second on an idle machine; this limit allows for a busy one"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, linearize_command: Command) -> None:
    ended = linearize_command(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.out


def test_help_names_the_commands_and_exit_codes(linearize_command: Command) -> None:
    help_text = linearize_command("--help").out
    for word in [*COMMANDS, "130", "--version"]:
        assert word in help_text


@pytest.mark.parametrize("command", ["convert", "finetune"])
def test_the_recipes_in_the_help_exist(command: str, linearize_command: Command) -> None:
    help_text = linearize_command(command, "--help").out
    listed = help_text.partition("Name (")[2].partition(")")[0].split(", ")
    assert listed
    assert set(listed) <= set(recipe.names())


def test_version(linearize_command: Command) -> None:
    assert linearize_command("--version").out == f"linearize {__version__}\n"


def test_no_arguments_show_help(linearize_command: Command) -> None:
    ended = linearize_command()
    assert ended.code == 2
    assert "Usage" in ended.out + ended.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["convrt"], "convrt"),
        (["convert", "embedded", "--windw", "3"], "--window"),
        (["convert", "embedded", "--window", "many"], "valid integer"),
        (["merge", "somewhere"], "--out"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str], told: str, linearize_command: Command
) -> None:
    ended = linearize_command(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert told in ended.err
    as_json = linearize_command(*arguments, "--json")
    assert as_json.json["error"]["exit_code"] == 2
    assert told in as_json.json["error"]["message"]


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    done = python(
        "import sys; sys.argv = ['linearize', 'doctor']\n"
        "from linearize.cli import doctor, main\n"
        "def broken(): raise RuntimeError('a bug')\n"
        "doctor.examine = broken\n"
        "main.main()"
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a bug" in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "linearize.cli.main", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
