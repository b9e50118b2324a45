"""How both commands end: one clear line and a documented exit code, no traceback for bad input.

Exit codes are listed in `linearize.errors`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

import typer

from linearize import allocator
from linearize.errors import Interrupted, LinearizeError


def run(app: typer.Typer) -> NoReturn:
    """Run a typer app and exit.

    - `LinearizeError` and usage errors: `error: ...` on stderr, or, when `--json` was asked for,
      `{"error": {"message", "exit_code"}}` on stdout.
    - Ctrl-C: the same, with `interrupted` and exit code 130.
    - A reader that went away (`| head`): silence.
    - Of several processes (`torchrun`) the first one shows results; errors name their process.
    - Anything else is a bug and keeps its traceback (exit code 1).
    """
    if _process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the end
    allocator.reuse()
    try:
        # Not standalone: typer would draw usage errors as a panel, which no script can read.
        # Exit codes of typer.Exit, and 130 for Ctrl-C, then come back as the result.
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
        if code == Interrupted.exit_code:
            _report("interrupted", code)
        sys.stdout.flush()
    except LinearizeError as error:
        code = _report(str(error), error.exit_code)
    except BrokenPipeError:
        code = _abandon_stdout()
    except SystemExit as ended:  # typer answers a broken pipe this way
        code = _abandon_stdout() if isinstance(ended.__context__, BrokenPipeError) else ended.code
    except Exception as error:
        # typer's usage errors share no public base class; these two attributes are their interface.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        message = error.format_message()
        # An empty message means that the help text has been shown already (no arguments given).
        code = _report(message, error.exit_code) if message else error.exit_code
    sys.exit(code)


def _report(message: str, code: int) -> int:
    message = " ".join(message.split())  # one line, also where it quotes a parser's drawing
    if "--json" in sys.argv[1:] and not _process():
        print(json.dumps({"error": {"message": message, "exit_code": code}}))
    else:
        where = f" in process {_process()}" if _process() else ""
        print(f"error{where}: {message}", file=sys.stderr)
    return code


def _process() -> int:
    """The number that a launcher of several processes gave this one."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return int(os.environ.get("RANK", "0")) if several else 0


def _abandon_stdout() -> int:
    # The interpreter flushes stdout once more while it shuts down: give it somewhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
