"""Recall tasks as the harness sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_recall import RECALL, small

from linearize.errors import InputError, UsageError
from linearize.eval import tasks


@pytest.mark.parametrize("name", RECALL)
def test_the_harness_builds_asks_and_scores(name: str, released: Path, tokenizer: Any) -> None:
    from lm_eval.api.task import ConfigurableTask

    config = tasks.config(name, small(name), data_dir=released, tokenizer=tokenizer)
    built = ConfigurableTask(config=config)
    docs = list(built.test_docs())
    assert docs
    for doc in docs:
        prompt, answer = built.doc_to_text(doc), built.doc_to_target(doc)
        assert prompt == prompt.rstrip()
        assert answer
        right = built.process_results(doc, [f" {answer}."])
        wrong = built.process_results(doc, ["-"])
        assert set(right) == {entry["metric"] for entry in config["metric_list"]}
        assert right["contains"] == 1.0
        assert set(wrong.values()) == {0.0}
        if name != "local_copying":  # the answer is in what was read
            assert answer.lower() in prompt.lower()
    assert config["metadata"]["parameters"] | small(name) == config["metadata"]["parameters"]


def test_lengths_are_counted_by_the_tokenizer(tokenizer: Any) -> None:
    config = tasks.config("local_passkey", {"length": 300, "samples": 11}, tokenizer=tokenizer)
    for doc in config["custom_dataset"]()["test"]:
        assert 240 < len(tokenizer(config["doc_to_text"](doc)).input_ids) <= 300


def test_reading_twice_takes_the_published_prompt() -> None:
    once, twice = (tasks.config("local_fda_like", {"readings": n}) for n in (1, 2))
    doc = {"key": "site", "value": "Hill", "text": "A. Site: Hill. B."}
    assert once["doc_to_text"](doc) == "A. Site: Hill. B. Site:"
    assert twice["doc_to_text"](doc) == (
        "Information about Site. A. Site: Hill. B.\nA. Site: Hill. B. Site:"
    )


def test_sets_are_read_once_announced_and_twice(tmp_path: Path) -> None:
    row = {"key": "site", "value": "Hill", "text": "A. Site: Hill. B."}
    file = tmp_path / "any name.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "value": "H"}))
    prompts = []
    for suffix in ("", "_cue", "_twice"):
        config = tasks.config(f"local_fda{suffix}", {"file": str(file)})
        docs = config["custom_dataset"]()["test"]
        assert len(docs) == 1, "values of one letter are left out, as published"
        prompts.append(config["doc_to_text"](docs[0]))
    text = "A. Site: Hill. B."
    assert prompts == [
        f"{text} Site:",
        f"Information about Site. {text} Site:",
        f"Information about Site. {text}\n{text} Site:",
    ]
    with pytest.raises(InputError, match=r"there is no file none\.jsonl"):
        tasks.config("local_nq_twice", {"file": "none.jsonl"})


def test_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder with fda[.]jsonl or a folder fda"):
        tasks.config("local_fda")
    with pytest.raises(InputError, match=r"there is no essay[.]txt or a folder essay in"):
        tasks.config("local_niah_single_2", data_dir=tmp_path)
    with pytest.raises(UsageError, match="readings=0"):
        tasks.config("local_swde_like", {"readings": 0})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from linearize.pretrained import locate
    from linearize.pretrained import tokenizer as load

    return load(locate("embedded"), False)
