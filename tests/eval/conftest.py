"""Small local files for tasks."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path

import pytest

from linearize.eval.recall import extraction

# An item of each released set that is not generated; there are two of it, one for each process.
RELEASED = {
    "squad_completion": {
        "context": "It was made in Lyon.",
        "question": "Where was it made?",
        "value": "Lyon",
        "text": "It was made in Lyon. It comes from",
    }
} | {
    name: {
        "context": "The Hawks led 14-3.",
        "question": "The leaders were the",
        "orig_question": "Who led?",
        "answers": ["Hawks"],
    }
    for name in ("drop", "nq", "triviaqa")
}


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the form of the released recall sets."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "essay.txt").write_text("One sentence. Another one.\nAnd a third. " * 20)
    for name, make in (("fda", extraction.fda_like), ("swde", extraction.swde_like)):
        rows = "".join(json.dumps(row) + "\n" for row in make(4, words=80, attributes=4))
        (folder / f"{name}.jsonl").write_text(rows)
    for name, row in RELEASED.items():
        (folder / name).mkdir()
        (folder / name / "validation.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    return folder


@pytest.fixture(scope="session")
def data(shared: Path, released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of each local file, for every task: what is tested does not need more."""
    folder = tmp_path_factory.mktemp("data")
    source = shared / "data" / "benchmarks"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    for file in source.glob("*/*.jsonl"):
        lines = file.read_text().splitlines()
        if file.stem == "mbpp":
            lines = [line for line in lines if '"split": "test"' in line]
        target = folder / file.relative_to(source)
        target.parent.mkdir()
        target.write_text("\n".join(lines[:8]) + "\n")
    with gzip.open(shared / "data" / "HumanEval.jsonl.gz", "rt") as file:
        (folder / "HumanEval.jsonl").write_text("".join(itertools.islice(file, 4)))
    articles = (shared / "data" / "wikitext-2" / "valid.txt").read_text().splitlines()
    (folder / "wikitext").mkdir()
    short = ["", " = One = ", "", *articles[3:5], " = Two = ", "", articles[5], ""]
    (folder / "wikitext" / "test.txt").write_text("\n".join(short))
    shutil.copytree(released, folder, dirs_exist_ok=True)
    return folder
