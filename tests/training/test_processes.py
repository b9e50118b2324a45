"""Two processes over gloo train like one process with batches of twice the size."""

from __future__ import annotations

import json
import socket

import pytest
from safetensors.torch import load_file
from small_run import children, one_of_two, small_model, small_rows, small_settings
from torch.testing import assert_close

from linearize.training import checkpoint
from linearize.training.loop import train


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one(tmp_path):
    context = children()
    port, changes = free_port(), {"steps": 6, "accumulate": 2}
    # Half the rows per process: the budget in tokens, not in steps, is what both share.
    both = [
        context.Process(target=one_of_two, args=(rank, port, tmp_path / "two"), kwargs=changes)
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]

    settings = small_settings(3, batch_size=4, accumulate=2)
    result = train(small_model(), small_rows(), settings=settings, run_dir=tmp_path / "one")
    lines = (tmp_path / "two/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[-1]["tokens"] == result.tokens
    assert [record["loss"] for record in records] == pytest.approx(result.losses, rel=1e-5)
    ours, theirs = (
        load_file(checkpoint.latest(tmp_path / name) / "state.safetensors")
        for name in ("two", "one")
    )
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
