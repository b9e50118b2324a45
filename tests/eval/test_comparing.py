"""Runs side by side: rows of runs and evaluations, published rows where the task is the same."""

from __future__ import annotations

import json

import pytest
from results import RESULT
from results_of_all_kinds import FINETUNED, STUDENT, TEACHER, evaluation, write

from linearize.errors import InputError
from linearize.eval.report import comparing, published


@pytest.fixture
def paths(tmp_path):
    return write(tmp_path)


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_runs_are_rows_with_the_numbers_of_their_files(paths):
    fidelity = comparing.tables(paths)[0]
    converted, tuned = rows(fidelity)
    assert converted["run"] == "conversion"
    assert converted["loss before"] == RESULT["losses"]["teacher"]
    assert converted["loss after"] == RESULT["losses"]["student"]
    assert converted["perplexity ratio"] == pytest.approx(1.005, abs=1e-4)
    assert tuned["loss after"] == FINETUNED["losses"]["after"]


def test_published_rows_stand_where_the_task_is_the_same(paths):
    _, scores = comparing.tables(paths)
    column = "piqa acc, 0-shot"
    found = {row["model"]: row for row in rows(scores)}
    assert found["student (student-eval)"][column] == "73.1 ± 1.1"
    assert found["small-llama"]["source"] is None
    liger = found["Liger-GLA, Llama-3-8B"]
    assert liger[column] == 80.3
    assert "2503.01496" in liger["source"]
    assert found["LoLCATs, Llama-3-8B"][column] == 80.9
    assert "2410.10254" in found["LoLCATs, Llama-3-8B"]["source"]
    assert liger["passkey contains, 0-shot"] is None
    for family in ("SUPRA", "MambaInLlama", "LoLCATs", "Liger"):
        assert any(name.startswith(family) for name in found)


def test_other_tasks_and_other_numbers_of_examples_have_no_published_rows(tmp_path):
    values = evaluation("out/student", 0.7)
    values["n-shot"]["local_piqa"] = 5
    (tmp_path / "results.json").write_text(json.dumps(values))
    (table,) = comparing.tables([tmp_path])
    assert [row["model"] for row in rows(table)] == ["student"]


def test_what_is_left_of_the_teacher_above_chance(tmp_path):
    tasks = {f"local_{task}": metric for task, metric, *_ in published.TASKS.values()}
    for name, values, score in (("teacher", TEACHER, 0.8), ("student", STUDENT, 0.65)):
        values = json.loads(json.dumps(values))
        values["results"] = {task: {f"{metric},none": score} for task, metric in tasks.items()}
        values["n-shot"] = dict.fromkeys(tasks, 0) | {"local_mmlu": 5}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(values))
    *_, kept = comparing.tables([tmp_path / "teacher", tmp_path / "student"])
    student, *others = rows(kept)
    assert student["MMLU"] == pytest.approx(100 * 0.4 / 0.55)
    half, quarter = 100 * 0.15 / 0.3, 100 * 0.4 / 0.55
    assert student["mean of the five others"] == pytest.approx((2 * half + 3 * quarter) / 5)
    radlads = next(row for row in others if row["model"].startswith("RADLADS"))
    assert (radlads["MMLU"], radlads["mean of the five others"]) == (92.4, 101.3)
    assert "2505.03005" in radlads["source"]


def test_published_means_are_those_of_the_papers():
    """The averages that the papers print beside the same numbers."""
    means = {"Liger-GLA, Llama-3-8B": 67.6, "LoLCATs, Llama-3-8B": 70.7, "SUPRA, Mistral-7B": 64.0,
             "Liger-GLA, Llama-3.2-1B": 52.9, "Llama-3-8B": 71.7, "Liger-GLA, Mistral-7B": 65.1,
             "MambaInLlama, half attention": 71.0}  # fmt: skip
    found = {row.model: sum(row.scores.values()) / len(row.scores) for row in published.ROWS}
    for name, mean in means.items():
        assert found[name] == pytest.approx(mean, abs=0.11)


def test_nothing_to_compare_and_damage_are_said(paths, tmp_path):
    with pytest.raises(InputError, match="there is nothing to compare"):
        comparing.tables([paths[-1], paths[-2]])
    (tmp_path / "conversion" / "result.json").write_text('{"losses": 3, "recipe": {}}')
    with pytest.raises(InputError, match="incomplete or damaged") as caught:
        comparing.tables(paths[:2])
    assert "conversion" in str(caught.value)
