"""Finished requests on disk: what a kill costs is one batch, and nothing is computed twice.

A response is found by a hash of everything that can change it: the request, the model's content,
its tokenizer and every option. Any number of settings can share a directory; none reads another's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from linearize.errors import InputError, OutputError


class Responses:
    """The responses in a directory; None keeps nothing.

    - `identity`: what else, besides a request, decides its response.
    - `rank`: processes write files of their own and read those of all.

    Raises `InputError` for a damaged file, `OutputError` if the directory cannot be written.
    """

    def __init__(
        self, directory: Path | str | None, identity: Mapping[str, Any], *, rank: int = 0
    ) -> None:
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._found: dict[str, Any] = {}
        self._file: Path | None = None
        if directory is None:
            return
        where = Path(directory)
        self._file = where / (f"responses.{rank}.jsonl" if rank else "responses.jsonl")
        try:
            where.mkdir(parents=True, exist_ok=True)
            for file in sorted(where.glob("responses*.jsonl")):
                self._read(file)
            _cut_torn_line(self._file)
        except OSError as error:
            raise OutputError(f"{where} cannot be written: {error.strerror}") from error

    def key(self, *request: Any) -> str:
        """Where the response of a request is kept."""
        text = json.dumps([self._identity, *request], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Any | None:
        """The response, or None."""
        return self._found.get(key)

    def add(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Append (key, response) pairs, synced."""
        pairs = list(pairs)
        if self._file is None or not pairs:
            return
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"key": k, "response": r}) + "\n" for k, r in pairs)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self._file} cannot be written: {error.strerror}") from error
        self._found.update(pairs)

    def _read(self, file: Path) -> None:
        lines = file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # the last is empty, or torn by a kill
            try:
                record = json.loads(line)
                self._found[record["key"]] = record["response"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} line {number} is damaged; delete the line, or the file to start anew"
                ) from error


def _cut_torn_line(file: Path) -> None:
    if file.is_file():
        raw = file.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.truncate(file, whole)
