"""Rows whose prefix is their prompt, from files that say where it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from prompted import PAIRS, written

from linearize import pretrained
from linearize.errors import InputError
from linearize.recipe import DataSettings, EncoderSettings
from linearize.training import data, prompt_rows
from linearize.training.packing import IGNORED
from linearize.training.prompt_rows import PromptRows


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return pretrained.tokenizer(pretrained.locate("embedded"), False)


def built(source: str, tokenizer: object, *, seq_len: int = 64, **encoder: object) -> PromptRows:
    settings = DataSettings(source=source, seq_len=seq_len, eval_source=source)
    given = {"prompt": "prompt", "rows": 1, "masked": 0.3, "mask_token": "~", **encoder}
    return prompt_rows.build(settings, EncoderSettings(**given), tokenizer, 10_000)


def test_the_prompt_is_the_prefix(tmp_path: Path, tokenizer: object) -> None:
    rows = built(written(tmp_path / "a.jsonl", PAIRS), tokenizer)
    assert len(rows) == 3
    torch.manual_seed(0)
    hidden = 0
    for _ in range(20):
        batch = rows.batch([2, 0])
        for row, (prompt, rest) in enumerate((PAIRS[2], PAIRS[0])):
            length = int(batch["prefix_lengths"][row])
            end = length + len(tokenizer(rest, add_special_tokens=False).input_ids)
            ids, targets = batch["unmasked"][row], batch["targets"][row]
            assert tokenizer.decode(ids[:length], skip_special_tokens=True) == prompt
            assert tokenizer.decode(ids[length:end]) == rest
            assert (targets[: length - 1] == IGNORED).all()
            follows = targets[length - 1 : end - 1]
            assert torch.equal(follows, ids[length:end])
            asked = batch["masked_targets"][row] != IGNORED
            assert not asked[length:].any()
            hidden += int(asked.sum())
        longest = max(int(x) for x in (batch["unmasked"] != rows.pad).sum(1))
        assert batch["input_ids"].shape == (2, longest), "cut to the longest document"
    assert hidden


def test_some_rows_are_read_from_left_to_right(tmp_path: Path, tokenizer: object) -> None:
    rows = built(written(tmp_path / "a.jsonl", PAIRS), tokenizer, rows=0.5, masked=0)
    torch.manual_seed(0)
    lengths = torch.cat([rows.batch([0, 1, 2])["prefix_lengths"] for _ in range(100)])
    assert 0.45 < (lengths > 0).float().mean() < 0.7, "half, and at least one of each batch"


def test_a_document_longer_than_a_row_keeps_its_end(tmp_path: Path, tokenizer: object) -> None:
    source = written(tmp_path / "a.jsonl", PAIRS)
    whole, cut = built(source, tokenizer, masked=0), built(source, tokenizer, seq_len=16, masked=0)
    one, other = whole.batch([2]), cut.batch([2])
    assert one["input_ids"].shape[1] > 16
    assert torch.equal(other["input_ids"][0], one["input_ids"][0, -16:])
    lost = one["input_ids"].shape[1] - 16
    assert other["prefix_lengths"] == (one["prefix_lengths"] - lost).clamp(min=0)


def test_held_out_documents_are_those_of_the_text_alone(tmp_path: Path) -> None:
    pairs = [(f"a{i}", f" b{i}") for i in range(9)]
    pairs.insert(2, ("", "\n"))
    settings = DataSettings(source=written(tmp_path / "a.jsonl", pairs), eval_fraction=0.34)
    found = ["".join(pair) for pair in data.prompted(settings, "prompt")]
    assert found == list(data.trained_on(settings))
    assert len(found) == 6


@pytest.mark.parametrize(
    "row", [{"text": "a b", "prompt": "b"}, {"text": "a b", "prompt": "a b"}, "text"]
)
def test_what_is_no_prompt_is_named(row: dict | str, tmp_path: Path, tokenizer: object) -> None:
    name = "a.txt" if isinstance(row, str) else "a.jsonl"
    (tmp_path / name).write_text(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(InputError, match=r"document 1 of .* must begin with what field 'prompt'"):
        built(str(tmp_path / name), tokenizer)
