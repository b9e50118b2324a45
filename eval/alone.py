"""One evaluation at a time in a directory: two would compute the same and mix their files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from linearize.errors import OutputError, UsageError

# Where files cannot be locked (some network file systems), nothing is.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep a directory, made if it is not there, to this evaluation until the block ends.

    The lock is the system's, on the directory itself: it leaves no file, and a kill ends it. The
    processes of one evaluation are one: the first has the lock (`RANK`, as launchers set it).

    Raises `UsageError` if another evaluation has it, `OutputError` if it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory} cannot be written: {error.strerror}") from error
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    if int(os.environ.get("RANK", "0")):
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another evaluation is writing to {directory}; wait until it has ended, or give "
                "another --out"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OutputError(f"{directory} cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(handle)
