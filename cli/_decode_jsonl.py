"""`decode --jsonl IN --out OUT`: many prompts, in order, so that no kill costs more than a batch.

- A batch is a fixed run of lines. Its results are appended at once and synced; a run that is
  started again cuts OUT back to its last whole batch and goes on with the next. So every batch is
  computed whole, and the result is the same to the last bit.
- A record carries its line, its settings and a key, the hash of prompt and settings: what no longer
  belongs together is refused, not mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from linearize.errors import InputError, Interrupted, OutputError, UsageError

from ._decode_chat import messages
from ._decode_explain import Explanation
from ._decode_reading import Reading, Start
from ._decode_session import Session
from ._decode_settings import Settings
from ._print import progress


@dataclass(frozen=True)
class Line:
    """A line of IN: its number from 1, and its prompt or what is wrong with it."""

    number: int
    prompt: Any
    error: str | None
    rest: dict[str, Any]

    def key(self, about: dict[str, Any]) -> str:
        """Hash of everything that decides this line's result."""
        whole = json.dumps([self.prompt, self.error, about], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass
class Done:
    """What OUT holds now, `before` of its lines from before; `tokens` and `seconds` of this run."""

    out: str
    lines: int
    before: int
    errors: list[int] = field(default_factory=list)
    nan: list[int] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Batches:
    """How IN is read and OUT is written.

    - `name`: key of the prompt; `reading`: how prompts are read.
    - `explain`: add what remedies changed to the records.
    """

    session: Session
    settings: Settings
    name: str
    batch_size: int
    reading: Reading
    explain: bool

    def run(self, source: Path, out: Path, *, overwrite: bool) -> Done:
        """Do what is left to do.

        Raises `InputError` if IN cannot be read, `OutputError` if OUT cannot be written or is
        something else, `UsageError` if it was made from other lines or settings, `Interrupted`.
        """
        if out.exists() and source.exists() and out.samefile(source):
            raise UsageError(f"--out {out} is the file that is read; choose another")
        if self.reading.chat:  # no template: said before any line
            self.session.chat(messages(self.reading.system, "."))
        lines = list(read(source, self.name))
        done = Done(str(out), len(lines), 0)
        try:
            with out.open("wb" if overwrite else "ab") as file:
                kept = [] if overwrite else self._resume(file, out, lines)
                done.before = len({record["line"] for record in kept})
                for record in kept:
                    self._count(record, done)
                self._rest(file, lines, done)
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror}") from error
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted; what was done is in {out}, the same command goes on from there"
            ) from error
        return done

    def _rest(self, file: BinaryIO, lines: list[Line], done: Done) -> None:
        started = time.perf_counter()
        with progress("lines") as reached:
            reached(done.before, len(lines))
            for first in range(done.before, len(lines), self.batch_size):
                some = lines[first : first + self.batch_size]
                records = self._batch(some)
                file.write(b"".join(json.dumps(r).encode() + b"\n" for r in records))
                file.flush()
                os.fsync(file.fileno())
                for record in records:
                    if "error" in record:
                        print(f"error: line {record['line']}: {record['error']}", file=sys.stderr)
                    self._count(record, done)
                    done.tokens += len(record.get("ids", ()))
                reached(first + len(some), len(lines))
        done.seconds = time.perf_counter() - started

    def _batch(self, lines: list[Line]) -> list[dict[str, Any]]:
        """Records of some lines, in order."""
        encoded: dict[int, list[int]] = {}
        starts: dict[int, Start] = {}
        errors = {line.number: line.error for line in lines if line.error is not None}
        for line in lines:
            if line.error is None:
                try:
                    start = self.reading.start(self.session, line.prompt, self.settings)
                    encoded[line.number] = self.session.ids(start.prompt, self.settings)
                    starts[line.number] = start
                except InputError as error:
                    errors[line.number] = str(error)
        heard = Explanation(self.session.tokenizer) if self.explain else None
        results = self.session.run(
            list(encoded.values()), self.settings, batch_size=self.batch_size, on_penalty=heard
        )
        about = self._about()
        records = []
        for line in lines:
            head = {"line": line.number, "key": line.key(about)}
            if line.number in errors:
                records.append({**head, "error": errors[line.number], **about})
                continue
            index = list(encoded).index(line.number)
            rest = {"input": line.rest} if line.rest else {}
            told = {"penalties": heard.record(index)} if heard else {}
            own = [result for result in results if result.prompt == index]
            for place, result in enumerate(own):
                found = self.session.record(line.prompt, result, self.settings, place)
                read = starts[line.number].told
                records.append({**head, **rest, **found, **read, **told, **about})
        return records

    def _resume(self, file: BinaryIO, out: Path, lines: list[Line]) -> list[dict[str, Any]]:
        """Cut OUT back to whole batches; returns the records that stay."""
        about = self._about()
        by_number = {line.number: (place, line) for place, line in enumerate(lines)}
        kept: list[dict[str, Any]] = []
        pending: list[dict[str, Any]] = []
        size = end = 0
        for raw in out.read_bytes().splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break  # torn by a kill
            size += len(raw)
            record = _record(raw, out)
            self._compare(record, by_number.get(record["line"], (0, None))[1], about, out)
            pending.append(record)
            if self._closes(by_number[record["line"]][0], pending, len(lines)):
                kept, pending, end = kept + pending, [], size
        file.truncate(end)
        return kept

    def _closes(self, place: int, pending: list[dict[str, Any]], lines: int) -> bool:
        """Whether the newest record is the last one of a batch."""
        if (place + 1) % self.batch_size and place + 1 < lines:
            return False
        own = [record for record in pending if record["line"] == pending[-1]["line"]]
        return "error" in own[0] or len(own) == self.settings.num_return

    def _compare(
        self, record: dict[str, Any], line: Line | None, about: dict[str, Any], out: Path
    ) -> None:
        then, now = ({**r, **r["settings"]} for r in (record, about))
        names = [*about, *about["settings"], *record["settings"]]
        changed = {n for n in names if n != "settings" and then.get(n) != now.get(n)}
        if changed:
            raise UsageError(
                f"{out} was made with other settings ({', '.join(sorted(changed))}); repeat the "
                "old ones to go on, choose another --out, or add --overwrite to start anew"
            )
        if line is None or line.key(about) != record["key"]:
            raise UsageError(
                f"line {record['line']} of the input is not what {out} was made from; choose "
                "another --out, or add --overwrite to start anew"
            )

    def _about(self) -> dict[str, Any]:
        """What decides the results of all lines, as JSON gives it back."""
        reading = self.reading
        settings = asdict(self.settings) | {"chat": reading.chat, "system": reading.system}
        settings |= reading.told
        model = {k: v for k, v in self.session.about.items() if k != "device"}
        return json.loads(json.dumps({**model, "settings": settings}))

    @staticmethod
    def _count(record: dict[str, Any], done: Done) -> None:
        if "error" in record:
            done.errors.append(record["line"])
        elif record["finish_reason"] == "nan":
            done.nan.append(record["line"])


def read(source: Path, name: str) -> Iterator[Line]:
    """The lines of a JSONL file that are not empty. Raises `InputError` if it cannot be read."""
    try:
        raws = source.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    for number, raw in enumerate(raws, start=1):
        if raw.strip():
            yield _parse(number, raw, name)


def _parse(number: int, raw: bytes, name: str) -> Line:
    try:
        values = json.loads(raw)
    except ValueError as error:  # broken JSON or broken UTF-8
        return Line(number, raw.decode(errors="replace"), f"not JSON: {error}", {})
    if not isinstance(values, dict) or name not in values:
        return Line(number, values, f"no object with the key '{name}' (choose it by --field)", {})
    prompt = values.pop(name)
    ids = isinstance(prompt, list) and all(type(i) is int for i in prompt)
    if not isinstance(prompt, str) and not ids:
        return Line(number, prompt, f"'{name}' is neither text nor a list of token ids", {})
    return Line(number, prompt, None, values)


def _record(raw: bytes, out: Path) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"line", "key", "settings"} <= set(record):
        raise OutputError(
            f"{out} was not written by decode --jsonl; choose another --out, or add --overwrite"
        )
    return record
