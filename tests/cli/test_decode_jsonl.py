"""decode --jsonl: order kept, bad lines told, and a kill at any moment costs nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from decode_process import start

TIMES = {"seconds", "tokens_per_second"}
STORIES = ["Once upon a time", "Tom and his dog", "One day, a big bird", "Lily", "The sun was hot"]


def write(path: Path, lines: list) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(text) + "\n")
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records(path)]


@pytest.fixture
def source(tmp_path):
    return write(
        tmp_path / "in.jsonl",
        [{"prompt": p, "id": i} for i, p in enumerate(STORIES * 2)],
    )


@pytest.fixture
def go(run, source, tmp_path):
    def go(*arguments, out="out.jsonl", **options):
        jsonl = ("--jsonl", source, "--out", tmp_path / out, "-n", 8)
        return run(*jsonl, *arguments, **options)

    return go


def test_every_line_gets_the_text_it_would_get_alone(go, run, tmp_path):
    drawn = ("--temperature", 0.9, "--seed", 5)
    code, out, err = go("--batch-size", 4, *drawn)
    assert (code, out) == (0, "")
    assert "10 lines in" in err
    found = records(tmp_path / "out.jsonl")
    assert [r["line"] for r in found] == list(range(1, 11))
    assert [r["input"]["id"] for r in found] == list(range(10))
    for record, prompt in zip(found[:5], STORIES, strict=True):
        alone = json.loads(run("-p", prompt, "-n", 8, *drawn, "--json")[1])
        assert {k: record[k] for k in alone if k not in TIMES | {"settings"}} == {
            k: v for k, v in alone.items() if k not in TIMES | {"settings"}
        }
        assert alone["settings"].items() <= record["settings"].items()


def test_several_texts_per_line_and_other_fields(run, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "Once"}, {"text": [1, 403, 407]}])
    out = tmp_path / "out.jsonl"
    asked = ("--jsonl", source, "--out", out, "--field", "text", "-n", 6)
    code, _, _ = run(*asked, "--temperature", 1, "--num-return", 2, "--batch-size", 1)
    assert code == 0
    assert [(r["line"], r["return"]) for r in records(out)] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert records(out)[2]["prompt"] == [1, 403, 407]


def test_a_bad_line_is_told_with_its_number_and_the_others_run(run, tmp_path):
    bad = ['{"prompt": ', "", '{"text": 1}', {"prompt": 5}, {"prompt": [1, 999]}, "[1]"]
    bad += [{"prompt": "a" * 5000}, '"\\ud800"', {"prompt": "x\ud800"}]
    source = write(tmp_path / "in.jsonl", [{"prompt": "Once"}, *bad, {"prompt": "Tom"}])
    source.write_bytes(source.read_bytes() + b'{"prompt": "\xff"}\n')
    out = tmp_path / "out.jsonl"
    asked = ("--jsonl", source, "--out", out, "-n", 4)
    code, _, err = run(*asked)
    assert code == 3
    found = {r["line"]: r for r in records(out)}
    assert list(found) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [n for n, r in found.items() if "text" in r] == [1, 11]
    says = {
        2: "not JSON",
        4: "key 'prompt'",
        5: "neither text nor",
        6: "token 999 is outside",
        7: "key 'prompt'",
        8: "512 positions",
        10: "surrogate",
        12: "not JSON",
    }
    for number, words in says.items():
        assert words in found[number]["error"]
        assert f"error: line {number}: {found[number]['error']}" in err
    assert "9 of 11 lines could not be used: line 2, 4, 5, 6, 7, 8, 9, 10, 12" in err
    before = out.read_bytes()
    code, printed, _ = run(*asked, "--json")
    assert code == 3
    assert json.loads(printed)["errors"] == [2, 4, 5, 6, 7, 8, 9, 10, 12]
    assert json.loads(printed)["before"] == 11
    assert out.read_bytes() == before


@pytest.mark.parametrize("cut", [-1, -40, 0.5, 0.04, 0])
def test_a_torn_file_is_repaired_and_finished(go, tmp_path, cut):
    drawn = ("--temperature", 1, "--num-return", 2, "--batch-size", 4)
    assert go(*drawn, out="whole.jsonl")[0] == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    torn = whole[: int(len(whole) * cut) if cut >= 0 and isinstance(cut, float) else cut]
    (tmp_path / "out.jsonl").write_bytes(torn)
    assert go(*drawn)[0] == 0
    assert untimed(tmp_path / "out.jsonl") == untimed(tmp_path / "whole.jsonl")
    kept = whole[: len(torn)].count(b"\n") // 8 * 8  # whole batches of 4 lines with 2 texts
    lines = whole.splitlines(keepends=True)[:kept]
    assert (tmp_path / "out.jsonl").read_bytes().startswith(b"".join(lines))


def test_what_is_done_is_not_done_again(go, source, tmp_path):
    assert go("--batch-size", 5)[0] == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    source.write_text(source.read_text() + '{"prompt": "More"}\n')
    code, out, _ = go("--batch-size", 5, "--json")
    done = json.loads(out)
    assert code == 0
    assert (done["lines"], done["before"], done["tokens"]) == (11, 10, 8)
    after = (tmp_path / "out.jsonl").read_bytes()
    assert after.startswith(before)
    assert records(tmp_path / "out.jsonl")[-1]["prompt"] == "More"


def test_what_no_longer_belongs_together_is_refused(go, run, source, tmp_path):
    out = tmp_path / "out.jsonl"
    assert go()[0] == 0
    before = out.read_bytes()
    code, _, err = go("--seed", 3, "--temperature", 0.5)
    assert code == 2
    assert "other settings (options, sampler, seed)" in err
    assert "--overwrite" in err
    source.write_text(source.read_text().replace("Tom", "Tim"))
    code, _, err = go()
    assert code == 2
    assert "line 2 of the input is not what" in err
    assert out.read_bytes() == before
    assert go("--overwrite")[0] == 0
    assert records(out)[1]["prompt"].startswith("Tim")
    out.write_text("my notes\n")
    code, _, err = go()
    assert code == 5
    assert "not written by decode" in err
    assert out.read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--jsonl", "in.jsonl"), 2, "add --out"),
        (("--jsonl", "in.jsonl", "--out", "in.jsonl"), 2, "is the file that is read"),
        (("--jsonl", "none.jsonl", "--out", "x"), 3, "there is no file none.jsonl"),
        (("--jsonl", "in.jsonl", "--out", "none/x"), 5, "cannot be written"),
        (("--jsonl", "in.jsonl", "--out", "x", "-p", "a"), 2, "exactly one of"),
        (("--jsonl", "in.jsonl", "--out", "x", "--compare", "greedy"), 2, "takes one prompt"),
        (("--jsonl", "in.jsonl", "--out", "x", "--chat"), 3, "no chat template"),
    ],
    ids=str,
)
def test_mistakes(run, source, monkeypatch, arguments, code, says):
    monkeypatch.chdir(source.parent)
    got, _, err = run(*arguments)
    assert not (source.parent / "x").exists()
    assert got == code
    assert says in err


def test_killed_at_random_moments_and_run_again_equals_uninterrupted(shared, tmp_path):
    model = shared / "data" / "models" / "stories260K"
    lines = [{"prompt": p, "n": n} for n in range(8) for p in STORIES]
    source = write(tmp_path / "in.jsonl", [*lines[:20], "broken", *lines[20:]])

    out = tmp_path / "killed.jsonl"

    def begin(name):
        asked = ["--jsonl", source, "--out", tmp_path / name, "-n", 24, "--batch-size", 2]
        return start(model, *asked, "--temperature", 1, "--dry")

    def size():
        return out.stat().st_size if out.exists() else 0

    whole = begin("whole.jsonl")
    whole.join()
    assert whole.exitcode == 3
    for kill in range(4):
        before = size()
        process = begin("killed.jsonl")
        while process.is_alive() and size() <= before:
            time.sleep(0.002)
        time.sleep(0.03 * kill)
        assert process.is_alive(), "the run should be killed before it ends"
        process.kill()
        process.join()
        assert before < size()
    last = begin("killed.jsonl")
    last.join()
    assert last.exitcode == 3
    assert untimed(out) == untimed(tmp_path / "whole.jsonl")
    assert len(records(out)) == 41
