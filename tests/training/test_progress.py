from __future__ import annotations

import contextlib
import json
import os
import pty
import sys

import pytest
from small_run import go
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from linearize.training.progress import Reporter, read


def record(step):
    values = {"loss": 2.5, "tokens_per_second": 1234.5, "memory_bytes": 3 * 2**30}
    return {"step": step, "tokens": 10 * step, **values}


def test_lines_are_there_at_once_and_cut_where_a_run_resumes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Reporter(tmp_path, [], steps=9) as reporter:
        for step in (1, 2, 3):
            reporter.write(record(step))
            assert [line["step"] for line in read(path)] == list(range(1, step + 1))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    kept = read(path, 2)
    assert [line["step"] for line in kept] == [1, 2]
    with Reporter(tmp_path, kept, steps=9) as reporter:
        reporter.write(record(3))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_silent_processes_write_nothing(tmp_path):
    with Reporter(tmp_path, [], steps=2, silent=True) as reporter:
        reporter.write(record(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_only_on_a_terminal(tmp_path, terminal, monkeypatch):
    ours, theirs = pty.openpty() if terminal else os.pipe()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Reporter(tmp_path, [], steps=4) as reporter:
            reporter.write(record(1))
            reporter.write({"step": 1, "tokens": 10, "eval_loss": 2.0})
        stream.flush()
        os.set_blocking(ours, False)
        shown = ""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(ours, 100_000):  # a terminal hands over what it has in pieces
                shown += piece.decode()
    os.close(ours)
    if terminal:
        assert "1/4" in shown
        assert "loss 2.5000  1,234 tokens/s  3.00 GiB" in shown
    else:
        assert shown == ""


def test_board_shows_each_step_once(tmp_path):
    go(tmp_path, steps=4, checkpoint_every=1)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {"loss", "lr", "tokens_per_second"} <= set(board.Tags()["scalars"])
    losses = board.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    expected = [line["loss"] for line in read(tmp_path / "metrics.jsonl")]
    assert [event.value for event in losses] == pytest.approx(expected)
