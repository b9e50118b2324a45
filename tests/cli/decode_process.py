"""`decode` in a process of its own that starts in a fraction of a second, to be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess


def go(arguments: list[str]) -> None:
    """What the console script does."""
    from linearize.cli import decode

    sys.argv = ["decode", *arguments]
    decode.main()


def start(*arguments: object) -> ForkServerProcess:
    """A running `decode ARGUMENTS`; everything was imported before it was forked."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    llama = "transformers.models.llama.modeling_llama"
    context.set_forkserver_preload(["linearize.decoding", "linearize.converted", llama])
    process = context.Process(target=go, args=([str(a) for a in arguments],))
    process.start()
    return process
