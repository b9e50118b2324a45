"""`linearize gates` lists what `--gate` takes."""

from __future__ import annotations

from pathlib import Path

from command import Command

from linearize.liger import gates


def test_every_family_is_listed(linearize_command: Command) -> None:
    rows = linearize_command("gates", "--json").json
    assert [row["name"] for row in rows] == list(gates.GATES)
    found = {row["name"]: row for row in rows}
    assert found["gsa"]["state"] == "K M + M V"
    assert found["retnet"]["normalizer"] is None
    assert found["gla"]["no_prefix"] is None
    assert found["gsa"]["no_prefix"]
    text = linearize_command("gates").out
    assert all(name in text for name in gates.GATES)


def test_gates_can_be_chosen_and_sized(stories: Path, linearize_command: Command) -> None:
    found = linearize_command("inspect", stories, "--gate", "gsa", "--json").json
    assert found["spec"]["gate"] == "gsa"
    assert found["state_bytes"]["recurrent"] == 5 * 4 * 2 * (8 * 64) * 4
    assert set(found["gates"]) == set(gates.GATES)
    ended = linearize_command("inspect", stories, "--gate", "gated-delta")
    assert ended.code == 2
    assert "did you mean 'gated_deltanet'" in ended.err
