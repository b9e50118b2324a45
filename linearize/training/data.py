"""Where text comes from: files, directories, the standard library or a hub data set.

Everything streams: nothing is read before it is asked for, and no more than that.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError, suggest
from ..recipe import DataSettings
from . import corpora
from .functions import functions


def documents(settings: DataSettings) -> Iterator[str]:
    """Documents of `settings.source`, in a fixed order, without blank ones.

    The source is "stdlib" (the running Python's standard library), a file, a directory or glob
    pattern (searched recursively, in order of path), or else the name of a hub data set:

    - `.txt`: documents are separated by lines equal to `settings.separator`
    - `.jsonl`, `.parquet`, hub: one document per row, in `settings.field`
    - `.py`: one document

    Raises:
        UsageError: no source given, or rows have no such field.
        InputError: missing, unreadable, malformed or empty, or the hub cannot be reached.
    """
    found = False
    for text in _read(settings):
        text = text.strip("\r\n")
        if text.strip():
            found = True
            yield text
    if not found:
        raise InputError(
            f"there is no text in {settings.source}: every document is empty; "
            f"check data.field={settings.field!r} and the file's content"
        )


def split(settings: DataSettings) -> Iterator[tuple[bool, str]]:
    """Documents with a flag: True for every n-th, which is held out of training.

    n is `1 / settings.eval_fraction`, rounded, at least 2. With a held-out source of its own
    (`settings.eval_source`) nothing is held out here. With `settings.pieces` "functions", those of
    each document come in its place; held-out documents stay whole, so that losses compare. Raises
    as `documents` does, and `InputError` if there is not one function.
    """
    every = None if settings.eval_source else _every(settings)
    found = settings.pieces == "documents"
    for index, text in enumerate(documents(settings)):
        kept_back = every is not None and index % every == every - 1
        if kept_back or settings.pieces == "documents":
            yield kept_back, text
            continue
        for piece in functions(text):
            found = True
            yield False, piece
    if not found:
        raise InputError(
            f"there is no function of Python in {settings.source}; leave out data.pieces=functions"
        )


def prompted(settings: DataSettings, field: str) -> Iterator[tuple[str, str]]:
    """Documents that are not held out, each in two parts: its prompt, and the rest of its text.

    `field`: which field of the rows holds the prompt, with which `settings.field` begins. Raises as
    `documents` does, and `InputError` where a text does not begin with its prompt, or ends with it.
    """
    every = None if settings.eval_source else _every(settings)
    prompts = _read(settings.model_copy(update={"field": field}))
    index = 0
    for number, (text, prompt) in enumerate(zip(_read(settings), prompts, strict=True), start=1):
        text, prompt = text.strip("\r\n"), prompt.lstrip("\r\n")
        if not text.strip():
            continue
        if not text.startswith(prompt) or not text[len(prompt) :].strip():
            raise InputError(
                f"document {number} of {settings.source}: field '{settings.field}' must begin with "
                f"what field '{field}' holds, and go on after it; .txt and .py files have no fields"
            )
        if every is None or index % every != every - 1:
            yield prompt, text[len(prompt) :]
        index += 1


def trained_on(settings: DataSettings) -> Iterator[str]:
    """Documents that are not held out, as `split` says. Raises as `documents` does."""
    return (text for kept_back, text in split(settings) if not kept_back)


def held_out(settings: DataSettings) -> Iterator[str]:
    """Documents that are not trained on, as `split` says. Raises as `documents` does."""
    if settings.eval_source:
        return documents(settings.model_copy(update={"source": settings.eval_source}))
    return (text for kept_back, text in split(settings) if kept_back)


def _every(settings: DataSettings) -> int:
    """Of so many documents one is held out."""
    return max(2, round(1 / settings.eval_fraction))


def _read(settings: DataSettings) -> Iterator[str]:
    source = settings.source
    if not source:
        raise UsageError(
            "there is no text to train on; give data.source: a .txt, .jsonl or .parquet file, "
            "a directory, a hub data set, or stdlib (the sources of Python's standard library)"
        )
    if source == "stdlib":
        yield from (text for _, text in corpora.stdlib())
    elif files := _files(source):
        for path in files:
            yield from _READERS[path.suffix](path, settings)
    else:
        yield from _hub(settings)


def _files(source: str) -> list[Path]:
    """Files that `source` stands for; none if it can only be a hub name."""
    path = Path(source).expanduser()
    known = ", ".join(_READERS)
    if path.is_dir() or glob.has_magic(source):
        matched = [path] if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
        inside = [p for m in matched for p in (m.rglob("*") if m.is_dir() else [m])]
        files = sorted({p for p in inside if p.suffix in _READERS and p.is_file()})
        if not files:
            raise InputError(f"{source} matches no file with text; read are {known}")
        return files
    if path.exists():
        if path.suffix not in _READERS:
            raise InputError(f"cannot read text from {source}: its name must end in one of {known}")
        return [path]
    if path.suffix in _READERS or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise InputError(
            f"there is no file {source}; data.source must be a file, a directory, "
            "a glob pattern, a hub data set or stdlib"
        )
    return []


def _txt(path: Path, settings: DataSettings) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(path):
        if settings.separator and line.rstrip("\r\n") == settings.separator:
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _py(path: Path, settings: DataSettings) -> Iterator[str]:
    yield "".join(_lines(path))


def _jsonl(path: Path, settings: DataSettings) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{where}: not valid JSON ({error}); write one object per line"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: not a JSON object; write one object per line")
        yield _text(row, settings.field, where)


def _parquet(path: Path, settings: DataSettings) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f'reading {path} needs pyarrow; install it with: pip install "linearize[parquet]"'
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            _check_field(settings.field, file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(columns=[settings.field]):
                for row in batch.to_pylist():
                    number += 1
                    yield _text(row, settings.field, f"{path}, row {number}")
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _hub(settings: DataSettings) -> Iterator[str]:
    source = settings.source
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"there is no file or directory {source}, and hub data sets need the datasets "
            'library; install it with: pip install "linearize[data]"'
        ) from error
    try:
        rows = datasets.load_dataset(source, settings.config, split=settings.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield _text(row, settings.field, f"{source}, row {number}")
    except (InputError, UsageError):
        raise
    except Exception as error:  # the library passes on whatever the network layer raised
        raise InputError(
            f"cannot read the hub data set {source} (config {settings.config}, split "
            f"{settings.split}): {type(error).__name__}: {error}; check the name and the "
            "connection, or give a local file with data.source=FILE"
        ) from error


_READERS: dict[str, Callable[[Path, DataSettings], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".py": _py,
}


def _lines(path: Path) -> Iterator[str]:
    try:
        # newline="\n": only that ends a line; utf-8-sig drops the mark some editors put first.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason}, byte 0x{error.object[error.start]:02x}); "
            "convert it, as in: iconv -f LATIN1 -t UTF-8"
        ) from error


def _text(row: dict[str, Any], field: str, where: str) -> str:
    _check_field(field, row, where)
    if not isinstance(row[field], str):
        raise InputError(
            f"{where}: field '{field}' holds {type(row[field]).__name__}, not text; "
            "choose another with data.field=NAME"
        )
    return row[field]


def _check_field(field: str, known: Any, where: str) -> None:
    if field not in known:
        raise UsageError(f"{where}: there is no field '{field}'{suggest(field, known)}")
