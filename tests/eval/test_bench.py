"""The bench: what it compares computes the same, and its records are complete."""

import json
import time

import pytest
import torch

from linearize import pretrained
from linearize.eval.bench import __main__ as bench
from linearize.eval.bench import ops, samplers, timing

CPU = torch.device("cpu")


def test_the_ways_that_are_compared_compute_the_same():
    inputs = ops._inputs(CPU, 200, 32, False)
    linear, windowed = ops._gla_ways(*inputs), ops._window_ways(*inputs)
    torch.testing.assert_close(linear["chunk"](), linear["recurrent"](), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        windowed["window_attention"](), windowed["dense window mask"](), atol=1e-5, rtol=1e-5
    )


def test_rounds_are_interleaved_and_medians_taken():
    calls = []
    ways = {
        "slow": lambda: (calls.append("slow"), time.sleep(0.01)),
        "fast": lambda: calls.append("fast"),
    }
    prepared = []
    taken = timing.compare(ways, seconds=0, rounds=4, before=prepared.append)
    assert calls == ["slow", "fast"] * 5, "one warm-up, then round after round"
    assert prepared == calls
    assert taken["slow"] >= 0.01 > taken["fast"]


def test_ops_bench_prints_a_table_and_writes_every_number(tmp_path, capsys):
    file = tmp_path / "ops.json"
    assert bench.main(["ops", "--lengths", "64", "--seconds", "0", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert len(written["records"]) == 2 * 2 * 2
    assert {"torch", "device", "threads"} <= set(written["machine"])
    for record in written["records"]:
        assert ops.REFERENCE in record["seconds"]
        assert all(value > 0 for value in record["seconds"].values())
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + sum(len(r["seconds"]) for r in written["records"])


def test_decode_bench_sees_the_cache_grow_and_the_state_stay(shared, tmp_path):
    model, file = shared / "data" / "models" / "stories260K", tmp_path / "decode.json"
    lengths = ["--contexts", "128", "512", "--seconds", "0"]
    assert bench.main(["decode", str(model), *lengths, "--json", str(file)]) == 0
    short, long = json.loads(file.read_text())["records"]
    assert long["cache_bytes"]["teacher"] == 4 * short["cache_bytes"]["teacher"]
    assert long["cache_bytes"]["converted"] == short["cache_bytes"]["converted"]
    assert short["cache_bytes"]["teacher"] == 128 * 5 * 2 * 4 * 8 * 4  # tokens, layers, KV, Hk, D
    for record in (short, long):
        for figures in ("seconds", "prefill_seconds"):
            assert all(value > 0 for value in record[figures].values())


def test_samplers_bench_times_every_remedy_beside_greedy(tmp_path, capsys):
    file = tmp_path / "samplers.json"
    small = ["--context", "64", "--tokens", "8", "--rounds", "1", "--batches", "1", "2"]
    asked = ["samplers", "embedded", *small, "--remedies", "rpg", "dry", "--json", str(file)]
    assert bench.main(asked) == 0
    written = json.loads(file.read_text())["records"]
    assert [(r["text"], r["batch"]) for r in written] == [
        ("file", 1),
        ("file", 2),
        ("loop", 1),
        ("loop", 2),
    ]
    for record in written:
        for kind in ("seconds", "cpu_seconds", "start_seconds"):
            assert list(record[kind]) == ["greedy", "rpg", "dry"]
            assert all(value > 0 for value in record[kind].values())
        alone = record["alone_seconds"]
        assert alone["rpg"] > alone["greedy"], "greedy has no remedy to call"
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4 * 3


def test_remedies_are_timed_on_the_code_they_are_said_to_see(monkeypatch):
    path = pretrained.locate("embedded")
    model, tokenizer = pretrained.load(path), pretrained.tokenizer(path)
    seen = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **k: seen.append(generate(**k)) or seen[-1])
    shape = {"batches": [2], "context": 200, "tokens": 60, "rounds": 1, "names": ["rpg"]}
    list(samplers.run(model, tokenizer, **shape))
    texts = [tokenizer.batch_decode(ids) for ids in seen]
    assert [len(ids[0]) for ids in seen] == [260] * 4
    assert texts[0] == texts[1], "rpg continues the same as greedy"
    assert texts[2] == texts[3]
    for file, loop in zip(texts[0], texts[2], strict=True):
        head = loop.split("\n")[0]
        assert head.startswith(("def ", "class "))
        assert loop.count(head) > file.count(head)
        assert file.startswith(("def ", "class "))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["decode", "/nowhere/model"], 3, "there is no model directory"),
        (["ops", "--device", "tpu9"], 2, "device='tpu9'"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, code, says):
    assert bench.main(arguments) == code
    assert says in capsys.readouterr().err
