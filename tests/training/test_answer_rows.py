"""Rows of which only what follows a document's prompt is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompted import PAIRS, written

from linearize import pretrained
from linearize import recipe as recipes
from linearize.errors import InputError, UsageError
from linearize.recipe import DataSettings
from linearize.training import answer_rows, stages
from linearize.training.answer_rows import AnswerRows
from linearize.training.packing import IGNORED


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return pretrained.tokenizer(pretrained.locate("embedded"), False)


def built(path: Path, tokenizer: object, *, tokens: int = 10_000, seq_len: int = 64) -> AnswerRows:
    source = written(path, PAIRS)
    settings = DataSettings(
        source=source, prompt_field="prompt", seq_len=seq_len, eval_source=source
    )
    return answer_rows.build(settings, tokenizer, tokens)


def answers(rows: AnswerRows, tokenizer: object) -> list[str]:
    """The texts that are learned, by document; the end of a document is a token of its answer."""
    batch = rows.batch(range(len(rows)))
    targets = batch["targets"].flatten().tolist()
    found, piece = [], []
    for target in [*targets, IGNORED]:
        if target != IGNORED:
            piece.append(target)
        elif piece:
            found.append(tokenizer.decode(piece, skip_special_tokens=True))
            piece = []
    return found


@pytest.mark.parametrize("seq_len", [64, 128])
def test_answers_and_nothing_else_are_learned(
    tmp_path: Path, tokenizer: object, seq_len: int
) -> None:
    rows = built(tmp_path / "a.jsonl", tokenizer, seq_len=seq_len)
    assert sorted(answers(rows, tokenizer)) == sorted(rest for _, rest in PAIRS)
    assert "position_ids" in rows.batch([0])


def test_a_long_document_goes_on_in_the_next_row(tmp_path: Path, tokenizer: object) -> None:
    rows = built(tmp_path / "a.jsonl", tokenizer, seq_len=8)
    assert len(rows) > len(PAIRS)
    learned = sum(int((rows.batch([i])["targets"] != IGNORED).sum()) for i in range(len(rows)))
    ends = sum(len(tokenizer(rest, add_special_tokens=False).input_ids) + 1 for _, rest in PAIRS)
    assert 0 < learned <= ends


def test_no_more_is_read_than_the_budget_needs(tmp_path: Path, tokenizer: object) -> None:
    assert len(built(tmp_path / "a.jsonl", tokenizer, tokens=1)) >= 1


def test_texts_must_begin_with_their_prompts(tmp_path: Path, tokenizer: object) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b", "prompt": "c"}\n')
    settings = DataSettings(source=str(path), prompt_field="prompt", eval_source=str(path))
    with pytest.raises(InputError, match="must begin with what field 'prompt' holds"):
        answer_rows.build(settings, tokenizer, 100)


def test_it_is_not_for_prompts_that_are_read_as_a_whole() -> None:
    recipe = recipes.load("jrt", ["data.prompt_field=prompt"])
    with pytest.raises(UsageError, match="cannot work with objective"):
        stages.check(recipe)
