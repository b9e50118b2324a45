"""`linearize doctor` tells the truth about this machine."""

from __future__ import annotations

import torch
from command import Command


def test_json(linearize_command: Command) -> None:
    found = linearize_command("doctor", "--json").json
    assert found["torch"]["version"] == torch.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["device"]["memory_bytes"] > 2**28
    assert {row["op"] for row in found["backends"]} >= {"gla", "window_attention"}
    for row in found["optional"]:
        assert row["gives"]
        assert row["install"].startswith("pip install ")


def test_what_is_absent_comes_with_its_command(linearize_command: Command) -> None:
    found = linearize_command("doctor", "--json").json
    shown = " ".join(linearize_command("doctor").out.split())
    for row in found["optional"]:
        assert (row["install"] in shown) == (row["version"] is None)
    for row in found["backends"]:
        assert row["why"] in shown
