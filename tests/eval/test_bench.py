"""The bench: what it compares computes the same, and its records are complete."""

import json
import time

import pytest
import torch
import torch.nn.functional as F

from linearize import pretrained
from linearize.errors import UsageError
from linearize.eval.bench import __main__ as bench
from linearize.eval.bench import counting, decode, drawing, ops, parity, samplers, shapes, timing
from linearize.eval.bench.registry import BENCHES

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
    assert len(written["records"]) == 3 * 2 * 2
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
    assert long["cache_bytes"]["base"] == 4 * short["cache_bytes"]["base"]
    assert long["cache_bytes"]["converted"] == short["cache_bytes"]["converted"]
    assert short["cache_bytes"]["base"] == 128 * 5 * 2 * 4 * 8 * 4  # tokens, layers, KV, Hk, D
    for record in (short, long):
        for figures in ("seconds", "prefill_seconds", "of_copy", "of_read", "of_matrix"):
            assert all(value > 0 for value in record[figures].values())


def test_a_filled_cache_is_as_long_as_one_that_was_read():
    base = shapes.random("tiny")
    found = []
    for filled in (False, True):
        record = next(decode.run(base, contexts=[300], filled=filled, seconds=0))
        assert filled != ("prefill_seconds" in record)
        found.append(record["cache_bytes"])
    assert found[0] == found[1]
    assert list(next(decode.run(base, contexts=[8], alone=True, seconds=0))["seconds"]) == [
        "converted"
    ]


def test_operations_are_those_of_the_matrix_products():
    a, b = torch.randn(20, 30), torch.randn(30, 40)
    assert counting.operations(lambda: a @ b) == 2 * 20 * 30 * 40
    q, k = torch.randn(1, 4, 16, 8), torch.randn(1, 2, 16, 8)
    full = 2 * 4 * 16 * 16 * (8 + 8)

    def attend(**how):
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True, **how)

    assert counting.operations(attend) == full
    assert counting.operations(lambda: attend(is_causal=True)) == full * 17 // 32


def test_memory_is_what_lives_at_once():
    held = torch.zeros(1000, 1000)

    def work():
        first = held + 1
        second = first + 1
        del first
        return (second + 1).sum()

    assert 8e6 <= counting.peak_bytes(work, CPU) < 8.1e6, "two at once, and what was there is not"


def test_converted_model_shares_the_weights_of_its_base():
    base = shapes.random("tiny")
    model = shapes.converted(base)
    assert base.config.model_type == "llama", "the base stays as it was"
    assert model.config.model_type != "llama"
    theirs = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in model.parameters()} == theirs


def test_every_bench_runs_at_any_shape_and_writes_its_numbers(tmp_path):
    """What `make bench-gpu` does, small and on the CPU."""
    everything = ["all", "--shape", "tiny", "--device", "cpu", "--dtype", "float32"]
    assert bench.main([*everything, "--out", str(tmp_path)]) == 0
    files = {
        name: tmp_path / f"{name}-tiny-cpu.json" for name in BENCHES if not BENCHES[name].trained
    }
    assert set(tmp_path.iterdir()) == set(files.values())
    found = {name: json.loads(file.read_text()) for name, file in files.items()}
    for name, written in found.items():
        assert written["bench"] == name
        assert {"torch", "transformers", "linearize", "device", "threads"} <= set(
            written["machine"]
        )
        assert written["limits"]["copy"] > 0 < written["limits"]["matrix"]
    for record in found["parity"]["records"]:
        assert all(record["passed"].values())
        assert set(record["passed"]) | set(record["skipped"]) == {"chunk, cpu", "fla"}
    assert [r["rows"] for r in found["attention"]["records"]] == [1, 2]
    for name in ("attention", "prefill", "train"):
        for record in found[name]["records"]:
            for field in ("seconds", "operations", "peak_bytes", "of_matrix"):
                assert list(record[field]) == ["base", "converted"]
                assert all(value > 0 for value in record[field].values())
    short, long = found["prefill"]["records"]
    assert long["cache_bytes"]["base"] == 2 * short["cache_bytes"]["base"]
    assert [r["examples"] for r in found["eval"]["records"]] == ["own", "same"]
    for record in found["eval"]["records"]:
        assert all(value < 1e-4 for value in record["difference"].values()), "the same scores"
    # of 5 x 60 + 40 tokens and the first of an answer's two, four answers share all but two
    own, same = (r["tokens"] for r in found["eval"]["records"])
    questions = own["base"] // (4 * 341)
    for name in ("base", "converted"):
        assert own[name] == same[name] == questions * 4 * 341
        assert own[f"{name}, reuse"] == questions * (339 + 4 * 2)
        assert same[f"{name}, reuse"] == 300 + questions * (39 + 4 * 2)


def test_forms_that_compute_something_else_do_not_pass(monkeypatch):
    cases = ("one token", "strong decay", "packed")
    assert all(r["passed"]["chunk, cpu"] for r in parity.run(CPU, cases))
    right = parity.gla

    def wrong(*args, backend, **inputs):
        o, state = right(*args, backend=backend, **inputs)
        return (o * 1.01 if backend == "chunk" else o), state

    monkeypatch.setattr(parity, "gla", wrong)
    for record in parity.run(CPU, cases):
        assert record["outputs"]["chunk, cpu"] == pytest.approx(0.01, rel=1e-3)
        assert not record["passed"]["chunk, cpu"]
        assert set(record["skipped"]) <= {"fla"}

    def broken(*args, backend, **inputs):
        o, state = right(*args, backend=backend, **inputs)
        return (o * torch.nan if backend == "chunk" else o), state

    monkeypatch.setattr(parity, "gla", broken)
    record = next(parity.run(CPU, cases))
    assert record["outputs"]["chunk, cpu"] is None
    assert not record["passed"]["chunk, cpu"]
    assert "not finite" in next(parity.rows(record))


def test_eval_bench_scores_real_tasks(shared, data, tmp_path, capsys):
    model, file = shared / "data" / "models" / "stories260K", tmp_path / "eval.json"
    asked = ["--tasks", "local_arc_easy", "local_piqa", "--data-dir", str(data), "--seconds", "0"]
    asked += ["--questions", "2", "--json", str(file)]
    assert bench.main(["eval", str(model), *asked]) == 0
    *tasks, pooled = json.loads(file.read_text())["records"]
    assert [(r["examples"], r["requests"]) for r in tasks] == [
        ("local_arc_easy", 8),
        ("local_piqa", 4),
    ]
    assert pooled["requests"] == 12
    assert all(value < 1e-4 for value in pooled["difference"].values()), "the same scores"
    for way, seconds in pooled["seconds"].items():
        assert seconds == pytest.approx(sum(r["seconds"][way] for r in tasks))
        assert pooled["tokens"][way] == sum(r["tokens"][way] for r in tasks)
    long = ["eval", "--shape", "tiny", "--tokenizer", str(model), *asked]  # nothing is cut
    gains = {}
    for examples in ("drawn", "first"):
        assert bench.main([*long, "--examples", examples]) == 0
        record = json.loads(file.read_text())["records"][0]
        tokens = record["tokens"]
        gains[examples] = tokens["base"] / tokens["base, reuse"]
        assert all(value < 1e-4 for value in record["difference"].values()), "the same scores"
    assert gains["drawn"] < 4 < 5 < gains["first"], "four answers, or all eight requests"
    assert bench.main(["eval", "--shape", "tiny", *asked]) == 2
    assert "no tokenizer; give --tokenizer" in capsys.readouterr().err
    assert bench.main(["eval", str(model), *asked, "--tasks", "local_mqar"]) == 2
    assert "asks for generate_until, not only" in capsys.readouterr().err


def test_pictures_show_what_was_measured(tmp_path):
    records = [{"length": n, "seconds": {"base": n / 10, "converted": 1.0}} for n in (20, 10)]
    panels = [
        drawing.Panel("time", "length", "seconds", "s"),
        drawing.Panel("no", "length", "x", ""),
    ]
    assert drawing.lines(panels[0], records)["base"] == [(10, 1.0), (20, 2.0)]
    drawing.draw(panels, records, tmp_path / "time.svg")
    assert "<svg" in (tmp_path / "time.svg").read_text()
    with pytest.raises(UsageError, match=r"must end with \.svg"):
        drawing.draw(panels, records, tmp_path / "time.txt")


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
        (["opps"], 2, "invalid choice: 'opps'"),
        (["ops", "--length", "x"], 2, "'x' is not a whole number above 0"),
        (["decode", "a", "--shape", "tiny"], 2, "give one of the two"),
        (["train", "--shape", "tinny"], 2, "did you mean 'tiny'?"),
        (["ops", "--json", "/nowhere/ops.json"], 5, "there is no directory /nowhere"),
        (["prefill", "--lengths", "64", "0"], 2, "'0' is not a whole number above 0"),
        (["train", "--dtype", "fp32"], 2, "invalid choice: 'fp32'"),
        (["samplers", "--remedies", "rpgg"], 2, "invalid choice: 'rpgg'"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, code, says):
    assert bench.main(arguments) == code
    assert says in capsys.readouterr().err
