"""`linearize report`, `compare` and `bench` as commands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from results import RESULT


@pytest.fixture
def runs(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(RESULT))
    return tmp_path / "first", tmp_path / "second"


def test_report_of_one_and_of_several(linearize_command, runs, tmp_path):
    ended = linearize_command("report", runs[0], "--json")
    assert ended.json == {"report": str(runs[0] / "report.html")}
    out = tmp_path / "both.html"
    ended = linearize_command("report", *runs, "--out", out)
    assert (ended.code, ended.out.strip()) == (0, str(out))
    assert "linearized: second" in out.read_text()
    ended = linearize_command("report", *runs)
    assert ended.code == 2
    assert ended.err.count("\n") == 1


def test_a_corrupt_file_is_one_line(linearize_command, runs):
    (runs[1] / "result.json").write_text('{"losses": {"teacher"')
    for command in (["report", *runs, "--out", runs[0] / "a.html"], ["compare", *runs]):
        ended = linearize_command(*command)
        assert ended.code == 3
        assert ended.err.count("\n") == 1
        assert str(runs[1] / "result.json") in ended.err


def test_compare_prints_writes_and_has_json(linearize_command, runs, tmp_path):
    page = tmp_path / "compare.html"
    ended = linearize_command("compare", *runs, "--out", page)
    assert ended.code == 0
    assert "1.3050" in ended.out
    assert "second" in page.read_text()
    found = linearize_command("compare", *runs, "--json").json
    losses = [row["loss after"] for row in found["tables"]["Fidelity"]]
    assert losses == [RESULT["losses"]["student"]] * 2
    assert linearize_command("compare", runs[0]).code == 2


def test_bench_lists_its_kinds_and_passes_options_on(linearize_command, tmp_path):
    ended = linearize_command("bench", "ops", "--lengths", "x")
    assert ended.code == 2
    assert "linearize bench ops: argument --lengths" in ended.err
    assert ended.err.count("\n") == 1
    listed = linearize_command("bench", "--help")
    assert listed.code == 0
    for name in ("ops", "decode", "prefill", "train", "recurrent-depth", "samplers", "eval", "all"):
        assert f"\n    {name}" in listed.out


def test_help_of_bench_loads_no_torch():
    code = (
        "import sys; sys.argv = ['linearize', 'bench', '--help']\n"
        "from linearize.cli import main\n"
        "try: main.main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
