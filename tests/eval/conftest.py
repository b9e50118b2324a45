"""Small local files for tasks."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of each local file: what is tested does not need more."""
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
    return folder
