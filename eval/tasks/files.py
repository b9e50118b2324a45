"""Local data of tasks: where it lies, how it is read, and what says that it is not there."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from linearize.errors import InputError

Rows = list[dict[str, Any]]


def find(task: str, file: str | None, data_dir: Path | None, names: Sequence[str]) -> Path:
    """The file of a task: as named, else the first of `names` that lies in `data_dir`, or in its
    folder `benchmarks`.

    Raises `InputError` if there is none.
    """
    if file is not None:
        if not Path(file).is_file():
            raise InputError(f"{task}: there is no file {file}")
        return Path(file)
    if data_dir is None:
        raise InputError(
            f"{task} reads a local file and was not told where; give --data-dir DIR, a folder that "
            f"holds {names[0]}"
        )
    for folder in (data_dir, data_dir / "benchmarks"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise InputError(f"{task}: {data_dir} holds no {' nor '.join(names)}")


def rows(path: Path) -> Rows:
    """The objects of a JSONL file, which may be gzipped. Raises `InputError` for a damaged one."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as JSONL: {error}") from error
    if not found or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{path} holds no JSON objects, one per line")
    return found


def dataset(split: str, make: Callable[[], Rows]) -> Callable[..., dict[str, Any]]:
    """A `custom_dataset` of the harness with one split, made when the task is built."""

    def build(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(make())}

    return build


def taken(path: Path, make: Callable[[dict[str, Any]], dict[str, Any]]) -> Rows:
    """Every row of a file in the form the harness's own task has it.

    Raises `InputError` naming the row that lacks a field or has a wrong one.
    """
    found = []
    for number, row in enumerate(rows(path), 1):
        try:
            found.append(make(row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"{path} row {number} does not fit the task: {error!r}") from error
    return found


@functools.cache
def stock(name: str) -> ModuleType:
    """A Python file beside the harness's own tasks, such as "winogrande/preprocess_winogrande".

    Raises `InputError` if this version of lm-eval has none.
    """
    import lm_eval

    path = Path(lm_eval.__file__).parent / "tasks" / f"{name}.py"
    if not path.is_file():
        raise InputError(
            f"lm-eval {lm_eval.__version__} has no tasks/{name}.py; use 0.4.13, with which this "
            "project is tested"
        )
    spec = importlib.util.spec_from_file_location(f"_stock_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
