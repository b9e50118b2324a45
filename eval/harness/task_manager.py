"""The harness's index of tasks, with the local ones in it and data sets found in a local folder."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind

from linearize.errors import UsageError
from linearize.eval.tasks import TASKS, config


class Tasks(TaskManager):
    """Local tasks by name, the harness's own, and those of `include_path`.

    Args:
        include_path, include_defaults, metadata: as in the harness. Indexing its own tasks takes
            20 seconds; `include_defaults=False` leaves them out.
        data_dir: folder of local files: what local tasks read, and copies of the hub's data sets
            under their names (`DIR/allenai/ai2_arc`).
        parameters: local task -> its parameters.
        tokenizer: gives the tokenizer, for tasks that count tokens; called if there is one.
    """

    def __init__(
        self,
        verbosity: str | None = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
        *,
        data_dir: Path | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        tokenizer: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(verbosity, include_path, include_defaults, metadata)
        self.data_dir, self.parameters, self._words = data_dir, parameters or {}, tokenizer
        self._factory = _LocalCopies(data_dir, meta=metadata)
        for name in TASKS:
            self._index[name] = Entry(name=name, kind=Kind.TASK, yaml_path=None, cfg={"task": name})
        self._all_tasks = sorted(self._index)
        self._all_subtasks = sorted({*self._all_subtasks, *TASKS})

    def _load_spec(self, spec: Any) -> Any:
        if isinstance(spec, str) and spec in TASKS:
            given = {"data_dir": self.data_dir}
            if "tokenizer" in inspect.signature(TASKS[spec]).parameters:
                given["tokenizer"] = self._words() if self._words else None
            spec = config(spec, self.parameters.get(spec), **given)
        return super()._load_spec(spec)


class _LocalCopies(TaskFactory):
    """Reads a task's data set from the local folder, if it is there."""

    def __init__(self, data_dir: Path | None, *, meta: dict[str, Any] | None) -> None:
        super().__init__(meta=meta)
        self._data_dir = data_dir

    def _load_full_config(
        self, entry: Entry, overrides: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        found = super()._load_full_config(entry, overrides)
        name = found.get("dataset_path")
        if self._data_dir is not None and name and (self._data_dir / name).is_dir():
            found["dataset_path"] = str((self._data_dir / name).resolve())
            found["metadata"]["local_copy"] = found["dataset_path"]
        return found


class FromMetadata(Tasks):
    """For the harness's own command line, which knows `--metadata` but not our options:
    `data_dir=DIR`, and `NAME.KEY=VALUE` for a parameter of a local task."""

    def __init__(
        self,
        verbosity: str | None = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        given = dict(metadata or {})
        folder = given.pop("data_dir", None)
        parameters: dict[str, dict[str, Any]] = {}
        for key in [key for key in given if key.partition(".")[0] in TASKS]:
            task, _, name = key.partition(".")
            parameters.setdefault(task, {})[name] = given.pop(key)
        super().__init__(
            verbosity,
            include_path,
            include_defaults,
            given,
            data_dir=Path(folder) if folder else None,
            parameters=parameters,
            tokenizer=lambda: _tokenizer(given),
        )


def _tokenizer(given: Mapping[str, Any]) -> Any:
    """The tokenizer that the model's arguments name; None if they name none."""
    from linearize import pretrained

    named = given.get("tokenizer") or given.get("pretrained")
    return pretrained.tokenizer(pretrained.locate(str(named))) if named else None


def in_step(task: Any, rank: int, count: int, limit: float | None = None) -> None:
    """Let the processes of one evaluation draw the few-shot examples that a single one would.

    The harness draws them document by document, and a process sees every `count`-th document: the
    draws for the others' documents are made and dropped.

    - `limit`: of documents, as in the harness: a number, or below 1 a share.

    Raises `UsageError` for a task with fewer documents than processes.
    """
    documents = len(task.eval_docs) if count > 1 else count
    if limit is not None:
        documents = min(documents, int(limit) if limit >= 1 else math.ceil(documents * limit))
    if count > 1 and documents < count:
        raise UsageError(
            f"{task.task_name} has too few documents ({documents}) for {count} processes; start "
            f"{documents} at most, or evaluate it by itself"
        )
    sampler = getattr(task, "sampler", None)
    if count == 1 or sampler is None:
        return
    draw, skip = sampler.sample, [rank]

    def sample(*args: Any, **kwargs: Any) -> Any:
        for _ in range(skip[0]):
            with contextlib.suppress(AssertionError):  # too few examples is told for our own
                draw(*args, **kwargs)
        skip[0] = count - 1
        return draw(*args, **kwargs)

    sampler.sample = sample
