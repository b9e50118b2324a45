"""The recall demonstration: a teacher that answers from its context, and what conversions keep.

    python -m linearize.eval.recall_demo --out DIR [--smoke]

Trains the teacher, converts it, asks, and writes `results.json`, `table.md` and `recall.png`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from linearize.errors import LinearizeError


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, as listed in `linearize.errors`."""
    parser = argparse.ArgumentParser(
        prog="python -m linearize.eval.recall_demo", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--smoke", action="store_true", help="seconds instead of minutes: does it run?"
    )
    options = parser.parse_args(arguments)
    began = time.perf_counter()

    def tell(line: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    try:
        from linearize.eval.recall import demonstration, showing

        size = demonstration.SMOKE if options.smoke else demonstration.FULL
        found = demonstration.run(options.out, size, tell=tell)
        table = showing.table(found["rows"])
        (options.out / "table.md").write_text(table, encoding="utf-8")
        print(table)
        print("\n".join(map(str, showing.plot(found["rows"], options.out / "recall.png"))))
    except LinearizeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
