"""Passes beside the released sampler's: counted, not timed."""

from __future__ import annotations

import json

import pytest
import torch

import linearize
from linearize.eval.bench import __main__ as bench
from linearize.eval.bench import wave_passes


def test_a_trained_model_takes_fewer_passes_for_the_same_text(shared) -> None:
    model = linearize.load(shared / "golden" / "recurrent_depth" / "trained_242")
    prompts = [torch.tensor([list(text)]) for text in (b"c3:02,05,08,11,", b"s:ann sees ")]
    names = ("r' = 4", "r' = 1, noise 0.2, constant", "r' = 4, verify")
    told = {name: wave_passes.SETTINGS[name] for name in names}
    records = list(wave_passes.compare(model, prompts, told, tokens=16, recurrences=16))
    assert [record["setting"] for record in records] == list(names)
    for record in records:
        assert record["autoregressive"] == [16 * 16] * 2
        assert record["ours"]["equal"] == [True, True]
        assert "released" not in record or all(
            ours < theirs
            for ours, theirs in zip(
                record["ours"]["passes"], record["released"]["passes"], strict=True
            )
        )
    assert json.loads(json.dumps(records)) == records
    lines = [cells for record in records for cells in wave_passes.rows(record)]
    assert all(len(cells) == len(wave_passes.COLUMNS) for cells in lines)
    assert [cells[3] for cells in lines] == ["2 of 2", "2 of 2", "–"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "embedded"], "is not one"),
        (["--model", "embedded", "--rows", "0"], "--rows 0 is below 1"),
        (["--model", "embedded", "--settings", "r' = 3"], "no setting 'r' = 3'; did you mean"),
        ([], "--model"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, says) -> None:
    assert bench.main(["passes", *arguments, "--device", "cpu"]) != 0
    assert says in capsys.readouterr().err
