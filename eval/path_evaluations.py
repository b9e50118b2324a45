"""Scores of paths on a task, kept on disk: what was measured once is never measured again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linearize.decoding.layer_paths import layer_path, written
from linearize.errors import OutputError, UsageError

from .path_tasks import Task

FILE = "evaluations.jsonl"


class Evaluations:
    """Scores by path and item, in `FILE` of a directory; one line for each new measurement.

    - `about`: what decides a score besides path and item. The file's first line; a file that says
      otherwise is refused.
    - `made`: how many paths were run on the model since this object was made.
    """

    def __init__(
        self, directory: Path, about: dict[str, Any], model: Any, task: Task, batch_size: int
    ) -> None:
        """Raises `OutputError` if the directory cannot be written or holds something else,
        `UsageError` if it was made with another model or task."""
        self.model, self.task, self.batch_size = model, task, batch_size
        self.made = 0
        self._known: dict[str, dict[int, float]] = {}
        self._file = directory / FILE
        about = json.loads(json.dumps(about))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                self._read(about)
            elif any(directory.iterdir()):
                raise OutputError(f"{directory} holds other things; choose an empty directory")
            else:
                self._append(about)
        except OSError as error:
            raise OutputError(f"{directory} cannot be written: {error.strerror}") from error

    def __call__(self, path: Sequence[int], items: Sequence[int]) -> list[float]:
        """The score of each item under `path`, run on the model where it is not known yet."""
        name = written(path)
        known = self._known.setdefault(name, {})
        missing = [item for item in items if item not in known]
        if missing:
            with layer_path(self.model, path):
                scores = self.task.score(self.model, missing, self.batch_size)
            self.made += 1
            # JSON has no infinity.
            stored = [score if math.isfinite(score) else None for score in scores]
            self._append({"path": name, "items": missing, "scores": stored})
            known.update(zip(missing, scores, strict=True))
        return [known[item] for item in items]

    def _append(self, record: dict[str, Any]) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"{self._file} cannot be written: {error.strerror}") from error

    def _read(self, about: dict[str, Any]) -> None:
        whole, _, torn = self._file.read_text(encoding="utf-8").rpartition("\n")
        try:
            head, *records = map(json.loads, whole.split("\n"))
            changed = {k for k in {*head, *about} if head.get(k) != about.get(k)}
            for record in records:
                scores = [math.inf if score is None else score for score in record["scores"]]
                known = self._known.setdefault(record["path"], {})
                known.update(zip(record["items"], scores, strict=True))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{self._file} is damaged ({error}); choose another --out, or add --overwrite"
            ) from error
        if changed:
            raise UsageError(
                f"{self._file} was made with something else ({', '.join(sorted(changed))}); repeat "
                "it to go on, choose another --out, or add --overwrite to start anew"
            )
        if torn:  # by a kill
            self._file.write_text(f"{whole}\n", encoding="utf-8")
