"""`linearize paths` and `decode --layers` as people use and misuse them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import Command

from linearize.errors import UsageError
from linearize.eval.path_search import split

STORIES = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. ",
    "Tom had a big red ball. He liked to play with his dog. One day, the ball went into a tree. ",
    "There was a bird. It wanted to fly very high. The bird said to its mom, I am not scared. ",
]


@pytest.fixture
def model(shared: Path) -> Path:
    return shared / "data" / "models" / "stories260K"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Which of two words goes on a story: easy for the model, hopeless for most paths."""
    lines = [
        {"query": query, "choices": choices, "gold": gold}
        for query, choices, gold in [
            ("Once upon a", ["time", "banana"], 0),
            ("There was a little girl", ["carbon", "named"], 1),
            ("Lily went to the park to", ["play", "algebra"], 0),
            ("Tom was very", ["happy", "oxygen", "seven"], 0),
            ("One day, Lily and her", ["mom", "because"], 0),
            ("She said, thank", ["window", "you"], 1),
            ("The dog was very", ["big", "walking to", "of"], 0),
            ("He did not want to go", ["home", "purple"], 0),
        ]
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_one_path_for_a_task_and_what_it_is_worth(
    linearize_command: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ["paths", model, "--task", questions, "--simulations", 30, "--out", out]
    ended = linearize_command(*asked, "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert found == json.loads((out / "result.json").read_text())
    assert (found["items"], found["simulations"]) == ({"search": 4, "held_out": 4}, 30)
    assert found["original"]["path"] == "0-4"
    lengths = [row["length"] for row in found["front"]]
    rewards = [row["search"] for row in found["front"]]
    assert lengths == sorted(set(lengths))
    assert rewards == sorted(set(rewards))
    assert found["best"] == found["front"][-1]
    assert found["best"]["search"] >= found["original"]["search"]
    assert found["best"]["search"] == max(y for _, y in found["points"])
    assert found["oracle"]["some_path_is_right"] >= found["best"]["search"]
    difference = found["best"]["held_out"] - found["original"]["held_out"]
    assert found["transfer"]["difference"] == pytest.approx(difference)
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"

    again = linearize_command(*asked, "--json").json
    assert again["runs"] == 0
    same = {"front", "points", "transfer", "oracle"}
    assert {k: again[k] for k in same} == {k: found[k] for k in same}

    told = linearize_command(*asked).out
    for words in ("oracle", "upper bound", "held out", found["best"]["path"]):
        assert words in " ".join(told.split())


def test_a_path_for_each_question_is_called_an_oracle(
    linearize_command: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    asked = ["paths", model, "--task", questions, "--simulations", 25, "--per-item"]
    ended = linearize_command(*asked, "--out", tmp_path / "out", "--json")
    found = ended.json
    assert found["items"] == {"search": 8, "held_out": 0}
    assert "transfer" not in found
    assert found["runs"] == 8 * 25
    right = [q for q in found["questions"] if q["path"] is not None]
    assert found["oracle"]["some_path_is_right"] == len(right) / 8
    assert found["original"]["search"] <= found["front"][-1]["search"] == len(right) / 8
    assert all(q["length"] <= 5 for q in found["questions"] if q["original"])
    assert "oracle" in linearize_command(*asked, "--out", tmp_path / "out").out


def test_text_is_measured_by_its_perplexity(
    linearize_command: Command, model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(STORIES * 30))
    asked = ["paths", model, "--task", text, "--simulations", 25, "--items", 4]
    found = linearize_command(*asked, "--out", tmp_path / "out", "--json").json
    assert found["measure"] == "perplexity"
    assert found["original"]["search"] < 30
    front = [row["search"] for row in found["front"]]
    assert front == sorted(front, reverse=True)
    assert front[-1] <= found["original"]["search"]
    ended = linearize_command(*asked, "--out", tmp_path / "other", "--per-item")
    assert ended.code == 2
    assert "no right answer" in ended.err


def test_a_killed_search_goes_on_and_ends_the_same(
    linearize_command: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    def asked(out: str) -> list[str | Path]:
        task = ["--task", questions, "--simulations", "300", "--longest", "9"]
        return ["paths", model, *task, "--out", tmp_path / out]

    process = subprocess.Popen(
        [sys.executable, "-m", "linearize.cli.main", *map(str, asked("killed"))],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    file = tmp_path / "killed" / "evaluations.jsonl"
    deadline = time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < 12:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "goes on from there" in err
    with file.open("a") as torn:
        torn.write('{"path": "0-1", "ite')
    resumed = linearize_command(*asked("killed"), "--json").json
    whole = linearize_command(*asked("whole"), "--json").json
    assert 0 < resumed["runs"] < whole["runs"]
    assert resumed["front"] == whole["front"]
    assert resumed["points"] == whole["points"]


def test_other_things_are_not_mixed_or_overwritten(
    linearize_command: Command, model: Path, questions: Path, tmp_path: Path
) -> None:
    asked = ["paths", model, "--task", questions, "--simulations", 2]
    out = tmp_path / "out"
    assert linearize_command(*asked, "--out", out).code == 0
    ended = linearize_command(*asked, "--out", out, "--per-character")
    assert ended.code == 2
    assert "per_character" in ended.err
    assert linearize_command(*asked, "--out", out, "--per-character", "--overwrite").code == 0
    ended = linearize_command(*asked, "--out", questions.parent)
    assert ended.code == 5
    assert "holds other things" in ended.err
    ended = linearize_command(*asked, "--out", questions)
    assert ended.code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--simulations", "0"], 2, "simulations=0"),
        (["--longest", "4"], 2, "longest=4 is below the model's own 5"),
        (["--holdout", "1"], 2, "holdout=1.0"),
        (["--holdout", "0.01"], 2, "cannot be split"),
        (["--items", "0"], 2, "items=0"),
        (["--holdout", "0.5", "--per-item"], 2, "leave out one"),
        (["--exploration", "nan"], 2, "exploration=nan"),
        (["--dtype", "float8"], 2, "float8"),
        (["--task", "nowhere.jsonl"], 3, "no file nowhere.jsonl"),
    ],
)
def test_misuse_is_one_line(
    arguments: list[str],
    code: int,
    told: str,
    linearize_command: Command,
    model: Path,
    questions: Path,
    tmp_path: Path,
) -> None:
    asked = ["paths", model, "--task", questions, "--out", tmp_path / "out", *arguments]
    ended = linearize_command(*asked)
    assert ended.code == code
    assert told in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 of"),
        ('{"question": "Why?"}', "line 2 is no question"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "two or more choices"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "the right choice is 2"),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "the right choice is True"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', "choices that are texts"),
        ('{"query": "a", "choices": ["b", "%s"], "gold": 0}' % ("word " * 600), "512 positions"),
    ],
    ids=range(7),
)
def test_a_bad_question_is_named(
    line: str, told: str, linearize_command: Command, model: Path, tmp_path: Path
) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text('{"query": "Once upon a", "choices": ["time", "x"], "gold": 0}\n' + line)
    ended = linearize_command("paths", model, "--task", task, "--out", tmp_path / "out")
    assert ended.code == 3
    assert told in ended.err


@pytest.mark.parametrize("name", ["arc_easy/test", "hellaswag/validation", "piqa/validation"])
def test_published_layouts_are_read(
    name: str, shared: Path, linearize_command: Command, model: Path, tmp_path: Path
) -> None:
    lines = (shared / "data" / "benchmarks" / f"{name}.jsonl").read_text().splitlines()[:12]
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(lines))
    asked = ["paths", model, "--task", task, "--simulations", 2, "--out", tmp_path / "out"]
    found = linearize_command(*asked, "--json").json
    assert found["items"] == {"search": 6, "held_out": 6}


def test_items_are_split_by_seed_and_shared_by_none() -> None:
    inside, outside = split(50, items=20, holdout=0.25, seed=3)
    assert (len(inside), len(outside)) == (15, 5)
    assert len({*inside, *outside}) == 20
    assert split(50, items=20, holdout=0.25, seed=3) == (inside, outside)
    assert split(50, items=20, holdout=0.25, seed=4) != (inside, outside)
    with pytest.raises(UsageError, match="cannot be split"):
        split(1, items=20, holdout=0.5, seed=0)


def test_decode_runs_the_layers_it_is_given(run) -> None:
    asked = ("--prompt", "Once upon a time", "-n", 24)
    plain = run(*asked)[1]
    assert run(*asked, "--layers", "0-4")[1] == plain
    code, text, _ = run(*asked, "--layers", "0-2,2-4")
    assert code == 0
    assert text not in ("", plain)
    told = json.loads(run(*asked, "--layers", "0-2, 2-4", "--json")[1])
    assert told["layers"] == "0-2,2-4"
    assert told["text"].strip() == text.strip()
    code, _, err = run(*asked, "--layers", "0-5")
    assert code == 2
    assert "5 layers, 0 to 4" in err


def test_decode_does_not_mix_paths_in_a_file(run, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Once upon a time"}\n')
    asked = ("--jsonl", source, "--out", out, "-n", 4)
    assert run(*asked, "--layers", "0-3")[0] == 0
    assert run(*asked, "--layers", "0-3")[0] == 0
    code, _, err = run(*asked, "--layers", "0-2,4")
    assert code == 2
    assert "layers" in err
