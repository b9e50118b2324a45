"""Continuations on disk, so that no kill costs more than a batch and nothing is generated twice.

`continuations.jsonl` begins with a line of what all of it was made with; then one line per prompt
and way to choose tokens. A way that is added later only adds lines.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from linearize.errors import OutputError, UsageError

FILE = "continuations.jsonl"
Record = dict[str, Any]


class Store:
    """The records of one directory, in memory and on disk.

    Args:
        directory: created if absent.
        about: what must be the same for all records, as plain JSON types.
        ways: name -> options; what is there under a name must have been made with the same.
        overwrite: start anew.

    Raises `UsageError` if the directory holds other settings, `OutputError` if it holds something
    else or cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        about: Mapping[str, Any],
        ways: Mapping[str, Mapping[str, Any]],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = directory / FILE
        self._records: dict[tuple[str, str], Record] = {}
        self._ways = {name: json.loads(json.dumps(options)) for name, options in ways.items()}
        head = json.loads(json.dumps({"about": about}))
        try:
            if directory.is_dir() and any(directory.iterdir()) and not self.path.is_file():
                raise OutputError(
                    f"{directory} is not empty and holds no {FILE}; choose another directory"
                )
            directory.mkdir(parents=True, exist_ok=True)
            lines = [] if overwrite or not self.path.is_file() else self._whole_lines()
            if lines:
                self._check(lines[0], head)
                for line in lines[1:]:
                    self._keep(self._parse(line))
            else:
                self.path.write_bytes(_line(head))
        except OSError as error:
            raise OutputError(f"{directory} cannot be written: {error.strerror}") from error

    def get(self, way: str, prompt: str, language: str | None) -> Record | None:
        """The record of a prompt in a language, if there is one."""
        return self._records.get((way, key(prompt, language)))

    def add(self, records: Iterable[Record]) -> None:
        """Append a batch of records (`way`, `prompt`, `language`, what was found), synced."""
        found = [
            {**r, "options": self._ways[r["way"]], "key": key(r["prompt"], r["language"])}
            for r in records
        ]
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(map(_line, found)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
        for record in found:
            self._keep(record)

    def _keep(self, record: Record) -> None:
        if not {"way", "key", "options"} <= set(record):
            raise self._foreign()
        name = record["way"]
        if name in self._ways and record["options"] != self._ways[name]:
            raise UsageError(
                f"{self.path} holds '{name}' with other options ({record['options']}); repeat "
                "them, choose another --out, or add --overwrite to start anew"
            )
        self._records[name, record["key"]] = record

    def _whole_lines(self) -> list[bytes]:
        """All lines; one torn by a kill is cut off."""
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self.path, len(whole))
        return whole.splitlines()

    def _check(self, line: bytes, head: dict[str, Any]) -> None:
        then, now = self._parse(line).get("about"), head["about"]
        if not isinstance(then, dict):
            raise self._foreign()
        changed = sorted(n for n in {*then, *now} if then.get(n) != now.get(n))
        if changed:
            raise UsageError(
                f"{self.path} was made with other settings ({', '.join(changed)}); repeat the old "
                "ones, choose another --out, or add --overwrite to start anew"
            )

    def _parse(self, line: bytes) -> Record:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise self._foreign()
        return record

    def _foreign(self) -> OutputError:
        return OutputError(
            f"{self.path} was not written by this suite; choose another --out, or add --overwrite"
        )


def key(prompt: str, language: str | None) -> str:
    """A short name for a prompt in a language: 64 bits of a hash."""
    return hashlib.sha256(json.dumps([prompt, language]).encode()).hexdigest()[:16]


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
