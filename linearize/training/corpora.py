"""Text that is on every machine: the sources of the running Python's standard library.

About 9 MB in 550 modules (CPython 3.11), code and English docstrings, under the PSF licence.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import InputError

# Test suites, third-party packages, and an application with its own data.
_SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "idlelib"),
    *("site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data"),  # generated: character maps, and documentation as one literal
}
# Generated tables: mostly numbers.
_SKIPPED_FILES = {"stringprep.py", "html/entities.py", "re/_casefix.py"}


def stdlib(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Name (POSIX path under the library) and text of each module.

    The order follows the hash of the name, so that the first modules are a fair sample whatever
    the budget. `root` is the library's directory; None = that of the running Python.

    Raises `InputError` if no sources are there (a Python without them, as in a zip file).
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
    names = sorted(filter(_wanted, names), key=lambda name: hashlib.sha256(name.encode()).digest())
    if not names:
        raise InputError(
            f"the sources of Python's standard library are not in {root}; "
            "give text of your own with data.source=FILE"
        )
    for name in names:
        yield name, (root / name).read_text(encoding="utf-8")


def digest(documents: Iterator[str]) -> str:
    """SHA-256 over the documents in order, as hex: tells whether two corpora are the same text."""
    total = hashlib.sha256()
    for text in documents:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    generated = name in _SKIPPED_FILES or path.name.startswith("_sysconfigdata")
    return not generated and _SKIPPED_FOLDERS.isdisjoint(path.parts)
