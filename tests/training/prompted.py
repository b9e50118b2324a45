"""Documents whose beginning is a prompt, in a file that says where it ends."""

from __future__ import annotations

import json
from pathlib import Path

PAIRS = [
    ("def f(x):", "\n    return x"),
    ("import", " os"),
    ("x = [1, 2, 3, 4, 5, 6, 7, 8, 9]\nfor", " a in x:\n    print(a)"),
]


def written(path: Path, pairs: list[tuple[str, str]]) -> str:
    rows = [{"text": prompt + rest, "prompt": prompt} for prompt, rest in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
