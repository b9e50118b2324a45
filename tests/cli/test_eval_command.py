"""`linearize eval`: the table, the files, and what a person does wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

from linearize.cli import doctor
from linearize.cli import eval as command
from linearize.decoding.repetition.languages import LANGUAGES
from linearize.eval.suites import SUITES

SMALL = ("--limit", "2", "--max-new-tokens", "24")


def test_the_whole_path(tmp_path: Path, linearize_command: Command) -> None:
    out = tmp_path / "out"
    asked = ["eval", "embedded", "--suite", "repetition", "--samplers", "greedy,sample+rpg"]
    asked += ["--option", "rpg.strength=2", "--option", "sample.top_k=5", *SMALL, "--out", str(out)]
    ended = linearize_command(*asked, "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert [g["name"] for g in found["groups"]] == ["built-in python", "built-in prose"]
    assert found["settings"]["ways"]["sample+rpg"] == {
        "sampler": "sample",
        "top_k": 5,
        "remedies": {"rpg": {"strength": 2}},
    }
    assert found["settings"]["device"] == "cpu"
    assert set(found["versions"]) == {"linearize", "torch", "transformers"}
    saved = json.loads((out / "results.json").read_text())
    assert {**found, **saved} == found
    assert {Path(f).name for f in found["files"]} == {f.name for f in out.iterdir()} - {
        "continuations.jsonl"
    }
    made = (out / "continuations.jsonl").read_bytes()
    shown = " ".join(linearize_command(*asked).out.split())
    assert (out / "continuations.jsonl").read_bytes() == made, "nothing was generated again"
    for told in ("tr-s terminal pooled", "sample+rpg", "self-reinforcement", "results.json"):
        assert told in shown
    ended = linearize_command(*asked, "--seed", "4")
    assert ended.code == 2
    assert "other settings (seed)" in ended.err


def test_prompts_of_a_file(tmp_path: Path, linearize_command: Command) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(
        json.dumps({"text": "int main() {\n"}) + "\n" + json.dumps({"text": "x" * 9999})
    )
    ended = linearize_command(
        *("eval", "embedded", "--suite", "repetition", "--samplers", "greedy", *SMALL),
        *("--prompts", file, "--field", "text", "--language", "c", "--out", tmp_path / "out"),
    )
    assert ended.code == 0, ended.err
    assert "mine: 1 prompts" in ended.out
    assert "1 prompts left out" in ended.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--suite", "repetitoin"], 2, "did you mean 'repetition'"),
        (["--samplers", "greedy,rgp"], 2, "did you mean 'rpg'"),
        (["--samplers", "greedy+sample"], 2, "names 2 samplers"),
        (["--samplers", " , "], 2, "names nothing"),
        (["--option", "dry.base=2"], 2, "'dry' is not used"),
        (["--option", "rpg.strenght=2"], 2, "did you mean 'strength'"),
        (["--language", "cobol"], 2, "no grammar for language 'cobol'"),
        (["--prompts", "/nowhere/p.jsonl"], 3, "cannot read /nowhere/p.jsonl"),
        (["--max-new-tokens", "2000"], 3, "no prompt leaves room"),
    ],
    ids=str,
)
def test_mistakes_of_an_evaluation(
    arguments: list[str], code: int, says: str, tmp_path: Path, linearize_command: Command
) -> None:
    out = tmp_path / "out"
    asked = ["--suite", "repetition", *SMALL, "--out", str(out), *arguments]
    ended = linearize_command("eval", "embedded", *asked)
    assert ended.code == code, ended.err
    assert says in ended.err
    assert not out.exists()


def test_what_is_spelt_out_without_imports_is_what_exists() -> None:
    assert set(command.SUITES) == set(SUITES)
    assert set(doctor.LANGUAGES) == set(LANGUAGES)
