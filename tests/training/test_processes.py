"""Several processes over gloo: the same run as one, on any number, and none hangs when one dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file
from small_run import children, one_of_two, trained
from torch.testing import assert_close

from linearize.errors import Interrupted
from linearize.training import checkpoint
from linearize.training.progress import METRICS, read

RUN = {"steps": 6, "accumulate": 2, "checkpoint_every": 2, "eval_every": 3}
PATIENCE = 120  # seconds after which a process counts as hanging


def in_two(run_dir, target=one_of_two, **changes):
    """Start both processes of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [
        children().Process(target=target, args=(rank, port, run_dir), kwargs=changes)
        for rank in range(2)
    ]
    for process in both:
        process.start()
    return both


def codes(both):
    for process in both:
        process.join(PATIENCE)
    return [process.exitcode for process in both]


def errors(run_dir):
    return [run_dir.with_name(f"error-{rank}.txt").read_text() for rank in range(2)]


def check_equal(run_dir, expected):
    """Losses, held-out losses and trained parameters of two runs."""
    ours, theirs = read(run_dir / METRICS), read(expected / METRICS)
    for key in ("step", "tokens", "loss", "eval_loss", "grad_norm"):
        found = [record[key] for record in ours if key in record]
        wanted = [record[key] for record in theirs if key in record]
        assert found == pytest.approx(wanted, rel=1e-6), key
    ours, theirs = (
        load_file(checkpoint.latest(path) / "state.safetensors") for path in (run_dir, expected)
    )
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process: each step takes two rows twice, where each of two takes them once."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    trained(run_dir, **RUN)
    return run_dir


def test_two_processes_equal_one_that_accumulates(tmp_path, alone):
    both = in_two(tmp_path / "run", **RUN)
    assert codes(both) == [0, 0]
    check_equal(tmp_path / "run", alone)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_started_in_two_processes_and_continued_in_one(tmp_path, alone):
    both = in_two(tmp_path / "run", **RUN, stop_at=3)
    assert codes(both) == [Interrupted.exit_code] * 2
    assert all("interrupted after 3 of 6 steps" in error for error in errors(tmp_path / "run"))
    trained(tmp_path / "run", resume=True, **RUN)
    check_equal(tmp_path / "run", alone)


def test_started_in_one_process_and_continued_in_two(tmp_path, alone):
    def stop(record):
        if record["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", on_step=stop, **RUN)
    assert codes(in_two(tmp_path / "run", resume=True, **RUN)) == [0, 0]
    check_equal(tmp_path / "run", alone)


@pytest.mark.parametrize(("rank", "shard"), [(0, False), (1, False), (1, True)])
def test_a_killed_process_ends_the_other(tmp_path, rank, shard):
    run_dir = tmp_path / "run"
    both = in_two(run_dir, steps=10_000, checkpoint_every=2, shard=shard)
    started = time.monotonic()
    while checkpoint.latest(run_dir) is None and time.monotonic() - started < PATIENCE:
        time.sleep(0.01)
    both[rank].kill()
    assert all(code not in (0, None) for code in codes(both))
    error = run_dir.with_name(f"error-{1 - rank}.txt").read_text()
    assert error.startswith(f"ProcessLost: process {1 - rank} lost another process of this run")
    assert "the last good checkpoint is" in error
    assert "--resume continues" in error


def test_rows_that_cannot_be_shared_are_refused(tmp_path):
    assert codes(in_two(tmp_path / "run", steps=1, batch_size=3)) == [2, 2]
    assert all("a step of 3 rows" in error for error in errors(tmp_path / "run"))


def test_processes_that_read_other_text_are_refused(tmp_path):
    assert codes(in_two(tmp_path / "run", steps=1, other_text=True)) == [1, 3]
    assert "process 1 was given other text" in errors(tmp_path / "run")[1]


def test_the_command_dies_with_one_of_its_processes_and_resumes_with_one(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("\n".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(3000)))
    arguments = ["convert", "embedded", "--recipe", "smoke", "--data", str(text), "--out", str(out)]
    arguments += ["--no-report", "seq_len=32", "checkpoint_every=2", "tokens=16_384"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.Popen(
        [sys.executable, *torchrun, "-m", "linearize.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    partial = out.with_name("out.partial")
    while checkpoint.latest(partial) is None and launched.poll() is None:
        time.sleep(0.01)
    first, second = psutil.Process(launched.pid).children()
    second.kill()  # whichever its number: the other one has to notice
    shown, said = launched.communicate(timeout=PATIENCE)
    assert launched.returncode == 1
    assert "lost another process of this run" in said
    assert f"the last good checkpoint is {partial}/checkpoints/step-" in said
    assert not first.is_running()
    assert not shown
    assert not out.exists()

    done = subprocess.run(
        [sys.executable, "-m", "linearize.cli.main", *arguments, "--resume", "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert json.loads(done.stdout)["steps"] == 128
    assert [record["step"] for record in read(out / METRICS)] == list(range(1, 129))
    assert not partial.exists()
