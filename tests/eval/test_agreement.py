"""How often a student answers as its teacher does, from the samples of two evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from results_of_all_kinds import STUDENT, TEACHER

from linearize.errors import InputError
from linearize.eval.report import agreement, comparing, render, sources


def sample(item: int, answer: Any, **metrics: float) -> dict[str, Any]:
    """A line of samples_TASK.jsonl, as far as it is read."""
    return {
        "doc_hash": f"d{item}",
        "prompt_hash": f"p{item}",
        "filter": "none",
        "filtered_resps": answer,
        "metrics": list(metrics),
        **metrics,
    }


def choices(*given: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Of (question, likeliest of four answers, whether it is right)."""
    return [
        sample(item, [[-1.0 if i == best else -2.0 - i, False] for i in range(4)], acc=right)
        for item, best, right in given
    ]


def target(item: int, likelihood: float, *, greedy: bool) -> dict[str, Any]:
    return sample(item, [[likelihood, greedy]], perplexity=likelihood)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    chosen = {  # task -> what each answered; the student was asked one question more
        "local_piqa": {
            "teacher": choices((0, 0, 1), (1, 1, 1), (2, 2, 0), (3, 0, 0)),
            "student": choices((3, 0, 0), (2, 2, 0), (1, 3, 0), (0, 0, 1), (9, 1, 1)),
        },
        "local_passkey": {
            "teacher": [target(0, -1.5, greedy=True), target(1, -9.0, greedy=False)],
            "student": [target(0, -1.0, greedy=True), target(1, -2.0, greedy=True)],
        },
    }
    for name, values in (("teacher", TEACHER), ("student", STUDENT)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(values))
        for task, given in chosen.items():
            lines = "\n".join(map(json.dumps, given[name]))
            (tmp_path / name / f"samples_{task}.jsonl").write_text(lines)
    return [tmp_path / "teacher", tmp_path / "student"]


def test_agreement_by_hand(runs: list[Path]) -> None:
    teacher, student = sources.read(runs)
    piqa, passkey = agreement.between(student, teacher)
    assert (piqa.task, piqa.items, piqa.same) == ("local_piqa", 4, 0.75)
    assert piqa.error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    # Teacher 0 1 2 0, student 0 3 2 0: both say 0 half of the time, both 2 a quarter.
    assert piqa.chance == pytest.approx(0.5 * 0.5 + 0.25 * 0.25)
    assert piqa.change == {"acc": -0.25}
    assert piqa.change_error["acc"] == pytest.approx(0.25)
    assert (passkey.items, passkey.same, passkey.chance) == (2, 0.5, 0.5)
    assert passkey.change == {}  # that "perplexity" is a log-likelihood


def test_texts_agree_when_they_are_equal(runs: list[Path]) -> None:
    for run, text in zip(runs, ("42", "43"), strict=True):
        lines = [sample(0, ["yes"], exact_match=1), sample(1, [text], exact_match=0)]
        (run / "samples_local_piqa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    teacher, student = sources.read(runs)
    one = agreement.between(student, teacher)[0]
    assert (one.same, one.chance, one.change["exact_match"]) == (0.5, None, 0.0)


def test_a_table_of_it_in_comparison_and_report(runs: list[Path]) -> None:
    table = next(t for t in comparing.tables(runs) if t.title == agreement.TITLE)
    model, task, items, same, chance, change = table.rows[0]
    assert (model, task, items, chance) == ("student", "local_piqa", 4, "31.2")
    assert (same, change) == ("75.0 ± 21.7", "acc -25.0 ± 25.0")
    assert "75.0 ± 21.7" in render(sources.read(runs))


def test_without_samples_there_is_no_table(runs: list[Path]) -> None:
    for path in runs[0].glob("samples_*"):
        path.unlink()
    assert agreement.TITLE not in [table.title for table in comparing.tables(runs)]
    assert agreement.TITLE not in render(sources.read(runs))


def test_damaged_samples_are_named(runs: list[Path]) -> None:
    (runs[1] / "samples_local_piqa.jsonl").write_text('{"doc_hash": 1')
    with pytest.raises(InputError, match=r"samples_local_piqa\.jsonl is damaged"):
        comparing.tables(runs)
