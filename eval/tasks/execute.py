"""Programs that a model wrote, in a process with limits. A limit is not a prison: what may not
reach the network or read the user's files must run in a container.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from linearize.errors import InputError

_FILES, _FILE_BYTES = 32, 1 << 20
# The word comes back only if the program ran to its end: a program that exits by itself has not
# passed its tests. It is read, and its way back is hidden, before the program starts.
_RUN = """
import os, resource, sys
word, seconds, memory, files, size = sys.stdin.readline().split()
limits = {"AS": int(memory), "CPU": int(seconds), "FSIZE": int(size), "NOFILE": int(files)}
for name, value in {**limits, "CORE": 0}.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
back, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
for channel in (0, 1, 2):
    os.dup2(nowhere, channel)
with open("program.py") as file:
    exec(compile(file.read(), "program.py", "exec"), {"__name__": "__main__"})
os.write(back, word.encode())
os._exit(0)
"""


def passes(program: str, *, seconds: float, megabytes: int) -> bool:
    """Whether a Python program runs to its end without an exception.

    In a process of its own, in an empty directory that is removed, without the environment's
    variables, with nothing to read; at most `seconds` of time, `megabytes` of memory, 32 open
    files and 1 MB per file. What it started is ended with it.

    Raises `InputError` on systems that cannot limit a process.
    """
    if os.name != "posix":
        raise InputError("this system cannot limit a process; run generated code on Linux or macOS")
    word = secrets.token_hex(16)
    limits = (int(seconds) + 1, megabytes << 20, _FILES, _FILE_BYTES)
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "program.py").write_text(program, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUN],
            cwd=empty,
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(
                " ".join(map(str, (word, *limits))).encode() + b"\n", timeout=seconds
            )
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
    return word.encode() in said  # twice, if it forked
