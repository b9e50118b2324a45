"""Compiling the C sources for this machine's processor, once, and loading them.

Nothing is built where there is no compiler: the torch forms compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCES = ("gla_forward.c", "gla_backward.c", "window.c", "linear.c")
SWITCH = "LINEARIZE_NATIVE"  # environment variable; 0 = never
_HERE = Path(__file__).parent
_OPTIMISED = ("-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
_TRIED = (("-fopenmp",), ())  # some compilers have no OpenMP: one thread is still faster than none

log = logging.getLogger(__name__)


class BuildError(Exception):
    """Why there is no library, in a line."""


def status() -> tuple[bool, str]:
    """Whether the C forms can run here, and the reason."""
    try:
        library()
    except BuildError as error:
        return False, str(error)
    return True, "compiled for this processor"


def ready() -> bool:
    """Whether the C forms can run here. The first call may compile, for some seconds."""
    return _load() is not None


def library() -> ctypes.CDLL:
    """The loaded library. Raises `BuildError` where there is none."""
    found = _load()
    if found is None:
        raise BuildError(_reason[0])
    return found


_reason = [""]


@functools.cache
def _load() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_built()))
    except (BuildError, OSError) as error:
        _reason[0] = str(error)
        log.info("ops run in plain torch: %s", error)
        return None


def _built() -> Path:
    """The shared library, compiled now unless this source was compiled here before."""
    if os.environ.get(SWITCH) == "0":
        raise BuildError(f"{SWITCH}=0 is set")
    compiler = _compiler()
    path = _cache() / f"{_key(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    return path


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError("no C compiler (cc, gcc, clang, or $CC) is installed")


def _cache() -> Path:
    """A directory of the user's own; a temporary one where the home cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has none
    for at in (Path(base), Path(tempfile.gettempdir()) / f"linearize-{user}"):
        try:
            own = at / "linearize" / "native"
            own.mkdir(parents=True, exist_ok=True)
            if own.stat().st_uid == user and os.access(own, os.W_OK):
                return own
        except OSError:
            continue
    raise BuildError(f"neither {base} nor {tempfile.gettempdir()} can be written")


def _key(compiler: str) -> str:
    """Differs wherever another library would come out."""
    parts = [_run([compiler, "--version"]), str(_runtime()), platform.machine()]
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts += sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    parts += [*_OPTIMISED, *(x.read_text() for x in sorted(_HERE.glob("*.[ch]")))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as at:
        made = Path(at) / "library.so"
        for how in _TRIED:
            runtime = [str(x) for x in [_runtime()] if x and how]
            sources = [str(_HERE / name) for name in SOURCES]
            command = [compiler, *_OPTIMISED, *how, *sources, *runtime, "-lm", "-o", str(made)]
            try:
                _run(command)
            except BuildError as error:
                why = error
                continue
            os.replace(made, path)  # whole or not at all, whoever else compiles it now
            return
        raise why


def _runtime() -> Path | None:
    """torch's own OpenMP library: a second one would have threads of its own."""
    return next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BuildError(f"{command[0]} failed: {lines[-1]}")
    return done.stdout
