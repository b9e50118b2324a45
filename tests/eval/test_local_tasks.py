"""Local tasks: the stock tasks' prompts, programs within limits, and what is said of what cannot
run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from linearize.errors import InputError, UsageError
from linearize.eval.harness import evaluate
from linearize.eval.tasks import TASKS, config

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
# lm-eval and what it imports warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

STOCK = {
    "local_arc_easy": "arc/arc_easy",
    "local_arc_challenge": "arc/arc_challenge",
    "local_hellaswag": "hellaswag/hellaswag",
    "local_piqa": "piqa/piqa",
    "local_winogrande": "winogrande/default",
    "local_lambada": "lambada/lambada_openai",
    "local_wikitext": "wikitext/wikitext",
    "local_gsm8k": "gsm8k/gsm8k",
    "local_humaneval": "humaneval/humaneval",
    "local_mbpp": "mbpp/mbpp",
}


@pytest.mark.parametrize("name", STOCK)
def test_prompts_are_those_of_the_stock_tasks(name: str, data: Path) -> None:
    """The harness's own YAML, given our documents, asks the same."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / f"{STOCK[name]}.yaml"
    code = name in ("local_humaneval", "local_mbpp")  # their functions would fetch a metric
    theirs = load_yaml(path, resolve_func=not code)
    mine = config(name, data_dir=data)
    if code:
        for key in ("metric_list", "filter_list"):
            theirs.pop(key, None)
        if "fewshot_config" in theirs:
            theirs["fewshot_config"]["samples"] = mine["fewshot_config"]["samples"]
    else:
        named = [[m["metric"] for m in c["metric_list"]] for c in (theirs, mine)]
        assert named[0] == named[1]
        assert theirs.get("filter_list") == mine.get("filter_list")
    assert theirs.get("generation_kwargs") == mine.get("generation_kwargs")
    assert theirs.get("num_fewshot") == mine.get("num_fewshot")
    for key in ("tag", "group", "dataset_path", "dataset_name"):
        theirs.pop(key, None)
    theirs = {key: value for key, value in theirs.items() if not key.endswith("_split")}
    splits = {key: value for key, value in mine.items() if key.endswith("_split")}
    same = {"task": name, "custom_dataset": mine["custom_dataset"], **splits}
    asked = []
    for fields in ({**theirs, **same}, {"task": name, **mine}):
        task = ConfigurableTask(config=fields)
        task.set_config("num_fewshot", 2 if name != "local_wikitext" else 0)
        task.set_fewshot_seed(1)
        task.build_all_requests(limit=5)
        asked.append([(r.request_type, r.args) for r in task.instances])
    assert asked[0] == asked[1]
    assert len(asked[0]) > 1


def test_hellaswag_contexts_are_split_where_the_released_ones_are() -> None:
    from linearize.eval.tasks.choices import _two_parts

    assert _two_parts("A man sits on a roof. he") == ("A man sits on a roof.", "he")
    assert _two_parts("He walks. She runs.") == ("He walks. She runs.", "")
    assert _two_parts("[header] How to cook [title] Boil, e.g. water.")[1] == ""


def test_canonical_solutions_pass_and_wrong_ones_do_not(data: Path, shared: Path) -> None:
    score = config("local_humaneval", data_dir=data)["process_results"]
    solved = [json.loads(line) for line in (data / "HumanEval.jsonl").read_text().splitlines()]
    for row in solved:
        assert score(row, [[row["prompt"] + row["canonical_solution"]]]) == {"pass@1": 1.0}
        assert score(row, [[row["prompt"] + "    return None\n"]]) == {"pass@1": 0.0}
    score = config("local_mbpp", data_dir=data)["process_results"]
    for line in (data / "mbpp" / "mbpp.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not row["test_setup_code"]:
            assert score(row, [row["code"]]) == {"pass_at_1": 1.0}


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "x = [0] * 10**10",
        "open('big', 'w').write('x' * 3 * 10**6)",
        "files = [open('program.py') for _ in range(100)]",
        "import os; assert os.environ.get('HOME')",
    ],
)
def test_programs_have_limits(program: str) -> None:
    from linearize.eval.tasks.execute import passes

    assert not passes(program, seconds=1, megabytes=512)
    assert passes("print('x' * 10**6)", seconds=5, megabytes=512)


def test_what_cannot_run_is_said_before_the_model_is_loaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = tmp_path / "far.yaml"
    file.write_text(
        "task: far\ndataset_path: nobody/nothing\noutput_type: loglikelihood\ntest_split: train\n"
        "doc_to_text: '{{text}}'\ndoc_to_target: ' end'\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    nowhere = str(tmp_path / "no-model")

    def ask(*names: str, **options: Any) -> None:
        evaluate(nowhere, names, include_path=str(tmp_path), **{"data_dir": data, **options})

    with pytest.raises(UsageError, match="local_mbpp runs code that the model writes"):
        ask("local_mbpp")
    with pytest.raises(InputError, match="was not told where; give --data-dir"):
        ask("local_piqa", data_dir=None)
    with pytest.raises(InputError, match=r"holds no piqa/validation\.jsonl"):
        ask("local_piqa", data_dir=tmp_path)
    with pytest.raises(UsageError, match=r"no parameter 'fiel'; did you mean 'file'"):
        ask("local_piqa", parameters={"local_piqa": {"fiel": 1}})
    with pytest.raises(InputError, match=r"there is no task file .*nowhere\.yaml"):
        ask("nowhere.yaml")
    with pytest.raises(UsageError, match="names nothing"):
        ask(" , ")
    with pytest.raises(
        InputError, match=r"nobody/nothing is on the hub.*hf download nobody/nothing.*--data-dir"
    ):
        ask(str(file))
    skipped = {}
    with pytest.raises(InputError, match="no model directory"):
        ask("local_piqa", str(file), skip_unavailable=True, on_skipped=skipped.__setitem__)
    assert list(skipped) == [str(file)]
    (tmp_path / "nobody" / "nothing").mkdir(parents=True)
    (tmp_path / "nobody" / "nothing" / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="no model directory"):
        ask(str(file), data_dir=tmp_path)


def test_unknown_tasks_get_the_nearest_names(data: Path) -> None:
    from linearize.eval.harness.checking import check, only_local
    from linearize.eval.harness.task_manager import Tasks

    manager = Tasks(include_defaults=False, data_dir=data)

    def ask(*names: str) -> Any:
        return check(manager, names, execute_code=False, skip_unavailable=False)

    assert only_local(["local_winogrand", "mine.yaml"]), "no need for the 20 seconds of an index"
    assert not only_local(["local_piqa", "piqa"])
    with pytest.raises(UsageError, match="nearest: local_winogrande"):
        ask("local_winogrand")
    assert {t.task_name for t in ask("local_arc_*").tasks} == {
        "local_arc_easy",
        "local_arc_challenge",
    }


def test_metadata_of_the_harness_reaches_local_tasks(data: Path) -> None:
    from linearize.eval.harness.task_manager import FromMetadata

    file = str(data / "piqa" / "validation.jsonl")
    manager = FromMetadata(
        include_defaults=False,
        metadata={"data_dir": str(data), "local_piqa.file": file, "pretrained": "embedded"},
    )
    assert manager.match_tasks(["local_piqa"]) == ["local_piqa"]
    task = manager._load_spec("local_piqa")
    assert task.config.metadata["parameters"] == {"file": file}
    assert "local_arc_easy" in manager.all_subtasks
    assert set(STOCK) <= set(TASKS)


def test_processes_draw_the_examples_that_one_would(data: Path) -> None:
    from linearize.eval.harness.task_manager import Tasks, in_step

    def prompts(rank: int, count: int) -> dict[int, Any]:
        task = Tasks(include_defaults=False, data_dir=data)._load_spec("local_arc_easy")
        in_step(task, rank, count)
        task.set_config("num_fewshot", 2)
        task.set_fewshot_seed(5)
        task.build_all_requests(rank=rank, world_size=count)
        return {r.doc["id"]: r.args[0] for r in task.instances}

    alone = prompts(0, 1)
    assert len(set(alone.values())) == 8
    assert {**prompts(0, 3), **prompts(1, 3), **prompts(2, 3)} == alone
    task = Tasks(include_defaults=False, data_dir=data)._load_spec("local_arc_easy")
    for limit in (None, 2, 0.1):
        with pytest.raises(UsageError, match=r"too few documents \(.*\) for 9 processes"):
            in_step(task, 0, 9, limit)
