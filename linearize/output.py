"""Writing a result so that a directory is either whole or not there.

Everything goes into the sibling `DIR.partial`, which is renamed to `DIR` at the end.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import OutputError, UsageError

_FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "quota exceeded", errno.EFBIG: "file too large"}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
# At least one of these is in every directory that linearize writes.
_OURS = ("result.json", "config.json", "adapter_config.json")


class OutputDirectory:
    """A directory that appears under its own name only when `commit` is called.

        with OutputDirectory("out", overwrite=True) as out:
            (out.path / "result.json").write_text(...)
            out.commit()

    - `path`: where to write until then, `DIR.partial`.
    - `final`: `DIR`, with links resolved.
    - `keep`: set it to True once `path` holds something worth resuming. Left without `commit`,
      the partial directory then stays; else it is removed. True from the start when resuming.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        needs: int = 0,
        sources: tuple[str | Path, ...] = (),
    ) -> None:
        """Check that `directory` can be written; nothing is created yet.

        - `resume`: continue in an existing `DIR.partial`.
        - `overwrite`: discard an existing `DIR.partial`, and replace `DIR` when `commit` is called.
        - `needs`: bytes that will be written, checked against the free space.
        - `sources`: directories that are read meanwhile and so must not be replaced.

        Raises `OutputError` if something is in the way, `UsageError` if `directory` is a source.
        """
        self.final = Path(directory).expanduser().resolve()
        self.path = self.final.with_name(self.final.name + ".partial")
        self._overwrite = overwrite
        self._committed = False
        _refuse_sources(self.final, sources)
        _refuse_occupied(self.final, overwrite=overwrite)
        self._resuming = resume and self.path.is_dir()
        self.keep = self._resuming
        if self.path.exists() and not (self._resuming or overwrite):
            raise OutputError(
                f"{self.path} holds an unfinished run; add --resume to continue it or --overwrite "
                "to discard it"
            )
        _require_space(self.final, needs)

    def __enter__(self) -> Self:
        try:
            if not self._resuming:
                _remove(self.path)
            self.path.mkdir(parents=True, exist_ok=self._resuming)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        except OSError as error:
            raise OutputError(_explain(error, self.path)) from error
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed and not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)
        if error is not None and is_full(error):
            kept = f"; what was saved is in {self.path}, continue with --resume" * self.keep
            raise OutputError(_explain(error, self.final) + kept) from error

    def commit(self) -> Path:
        """Rename the partial directory to its final name. Returns that name.

        Raises `OutputError` if something appeared there meanwhile.
        """
        _refuse_occupied(self.final, overwrite=self._overwrite)
        replaced = self.final.with_name(f".{self.final.name}.replaced-{os.getpid()}")
        try:
            if self.final.is_dir():
                self.final.rename(replaced)
            self.path.rename(self.final)
        except OSError as error:
            raise OutputError(_explain(error, self.final)) from error
        self._committed = True
        shutil.rmtree(replaced, ignore_errors=True)
        return self.final


def is_full(error: BaseException) -> bool:
    """Whether an exception says that there is no room left to write.

    The writers of safetensors and torch wrap the operating system's error into their own.
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    text = str(error)
    torch_stopped = "inline_container" in text and "unexpected pos" in text
    return torch_stopped or any(f"(os error {code})" in text for code in _FULL)


def _refuse_sources(final: Path, sources: tuple[str | Path, ...]) -> None:
    for source in sources:
        resolved = Path(source).expanduser().resolve()
        if resolved == final or final in resolved.parents:
            raise UsageError(f"--out {final} would replace {source}, which is read; choose another")


def _refuse_occupied(final: Path, *, overwrite: bool) -> None:
    if not final.exists():
        return
    if not final.is_dir():
        raise OutputError(f"{final} is a file; choose another output directory")
    if not any(final.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"the output directory {final} is not empty; choose another or add --overwrite to "
            "replace it"
        )
    if not any((final / name).exists() for name in _OURS):
        raise OutputError(
            f"{final} was not written by linearize (it has none of {', '.join(_OURS)}), so "
            "--overwrite leaves it alone; choose another, or empty it yourself"
        )


def _require_space(final: Path, needs: int) -> None:
    home = next(p for p in final.parents if p.exists())
    if not home.is_dir():
        raise OutputError(f"{final} cannot be created: {home} is a file")
    free = shutil.disk_usage(home).free
    if free < needs:
        raise OutputError(
            f"{final} needs about {needs / 1e9:.2f} GB and {home} has {free / 1e9:.2f} GB free; "
            "make room or choose another disk"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _explain(error: BaseException, path: Path) -> str:
    code = error.errno if isinstance(error, OSError) else errno.ENOSPC
    if code in _FULL:
        return f"{path} cannot be written: {_FULL[code]}; make room or choose another disk"
    if code in _CLOSED:
        return f"{path} cannot be written: {os.strerror(code)}; choose another output directory"
    return f"{path} cannot be written: {error}"
