"""Rows that repeat: cut at sentences, lines or marks, and drawn so that a run can be resumed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from small_run import small_model, small_rows, small_settings
from transformers import AutoTokenizer

from linearize import pretrained
from linearize.errors import InputError, UsageError
from linearize.recipe import DataSettings, RepetitionSettings
from linearize.training import pseudo_repetition
from linearize.training.loop import train
from linearize.training.progress import read
from linearize.training.pseudo_repetition import RepeatedRows, cut, repeats

PROSE = (
    'Mr. Fox ran. "Hi!" said Tom. He had 3.5 pies! "So many?"\n\nThe end came. Then 你好。再见。'
)
CODE = "def f(x):\n    a = x + 1\n    b = a * 2\n    return a + b\n"


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level: a newline and the blanks behind it are one token."""
    return AutoTokenizer.from_pretrained(pretrained.locate("embedded"))


def pieces(text: str, unit: str) -> list[str]:
    places = cut(text, unit)
    return [text[a:b] for a, b in pairwise(places)]


def test_sentences_begin_with_their_blanks() -> None:
    assert pieces(PROSE, "sentence") == [
        *("Mr. Fox ran.", ' "Hi!" said Tom.', " He had 3.5 pies!", ' "So many?"', "\n"),
        *("\nThe end came.", " Then 你好。", "再见。"),
    ]
    assert pieces(CODE, "line")[1] == "\n    a = x + 1"


def rows_of(text: str, tokenizer, *, seq_len: int = 64, **settings) -> RepeatedRows:
    data = DataSettings(source="text", seq_len=seq_len)
    texts = [text.strip("\r\n")] * 2
    return pseudo_repetition.build(texts, data, RepetitionSettings(**settings), tokenizer, 10_000)


@pytest.mark.parametrize(("text", "unit"), [(PROSE, "sentence"), (CODE, "line")])
def test_rows_repeat_whole_pieces_of_the_text_as_it_was_tokenised(text, unit, tokenizer) -> None:
    rows = rows_of(text, tokenizer, unit=unit)
    whole = tokenizer(text.strip("\r\n"), add_special_tokens=False).input_ids
    batch = rows.batch(range(len(rows)))
    assert {tuple(t.shape) for t in batch.values()} == {(len(rows), 64)}
    for ids, targets, previous, (prefix, first, end) in zip(
        *(batch[name] for name in ("input_ids", "targets", "previous")), rows.spans, strict=True
    ):
        assert torch.equal(ids[1:], targets[:-1])
        assert ids[0] == tokenizer.bos_token_id
        length, before = int(end - first), int(first - prefix) + 1
        row = torch.cat([ids, targets[-1:]])
        used = row[1 : before + length].tolist()
        joined = [whole[i : i + len(used)] for i in range(len(whole))]
        assert used in joined, "prefix and first copy are not a stretch of the text's tokens"
        assert tokenizer.decode(row[before : before + length]) in pieces(text, unit)
        assert torch.equal(row[before + length :], row[before : len(row) - length])
        seen = previous >= 0
        assert seen.nonzero()[0] == before + length
        assert seen.sum() == 64 - before - length
        assert torch.equal(targets[seen], targets[previous[seen]])


def test_context_is_whole_units_and_leaves_room(tokenizer) -> None:
    text = " ".join(f"The fox number {i} ran over the hill." for i in range(20))
    near = rows_of(text, tokenizer, seq_len=256, context=0).spans
    wide = rows_of(text, tokenizer, seq_len=256, context=60).spans
    tight = rows_of(text, tokenizer, seq_len=90, context=1000).spans
    assert len(near) == len(wide) == len(tight) == 40
    first = near[:20]  # the second document is the same
    assert first[1:, 0].tolist() == first[:-1, 1].tolist(), "one sentence at least"
    begins = set(first[:, 1])
    for spans, least in ((wide, 30), (tight, 30)):
        assert {prefix for prefix, *_ in spans[:20]} <= begins
        assert least < (spans[:, 1] - spans[:, 0]).max()
    assert (wide[:, 1] - wide[:, 0]).max() <= 60
    assert ((tight[:, 1] - tight[:, 0]) + 3 * (tight[:, 2] - tight[:, 1]) <= 90).all()


def test_marks_are_the_published_units(tokenizer) -> None:
    rows = rows_of("A b c. D e f. G h i. J k.", tokenizer, unit="mark")
    end = tokenizer("a.", add_special_tokens=False).input_ids[-1]
    batch = rows.batch([0])
    assert rows.begin == ()
    assert tokenizer.decode(batch["input_ids"][0, :12]).startswith(" D e f. G h i. G h i.")
    assert rows.tokens[rows.spans[:, 1]].tolist() == [end] * len(rows)


def test_text_without_units_says_what_to_do(tokenizer) -> None:
    with pytest.raises(InputError, match=r"no line of at least 2 tokens that fits 3 times"):
        rows_of("word " * 400, tokenizer, unit="line")


def test_the_choice_depends_on_seed_and_step_alone() -> None:
    chosen = [repeats(step, seed=3, share=0.5) for step in range(1, 2001)]
    assert chosen == [repeats(step, seed=3, share=0.5) for step in range(1, 2001)]
    assert chosen != [repeats(step, seed=4, share=0.5) for step in range(1, 2001)]
    assert 900 < sum(chosen) < 1100
    assert not any(repeats(step, seed=3, share=0.0) for step in range(100))
    assert all(repeats(step, seed=3, share=1.0) for step in range(100))


def repeated_rows(**settings) -> RepeatedRows:
    tokens = np.random.default_rng(1).integers(260, 300, 400).astype(np.int32)
    spans = np.array([(i, i + 4, i + 6 + i % 2) for i in range(0, 380, 3)])
    return RepeatedRows(tokens, spans, 32, RepetitionSettings(**settings))


def run(path, *, on_step=None, resume=False, steps=8, share=0.5, **changes):
    torch.set_num_threads(1)
    model = small_model(dropout=0.1)
    settings = small_settings(steps, objective={"next_token": 1.0, "ditto": 1.0}, **changes)
    result = train(
        model,
        small_rows(),
        settings=settings,
        run_dir=path,
        repeated=repeated_rows(share=share),
        on_step=on_step,
        resume=resume,
    )
    return model, result


def test_a_step_is_of_one_kind_and_a_resumed_run_is_the_same(tmp_path) -> None:
    def stop(record):
        if record["step"] == 4:
            raise KeyboardInterrupt

    model, whole = run(tmp_path / "whole", accumulate=2)
    records = read(tmp_path / "whole" / "metrics.jsonl")
    kinds = [sorted({"ditto", "next_token"} & record.keys()) for record in records]
    assert kinds == [
        ["ditto"] if repeats(step, seed=0, share=0.5) else ["next_token"] for step in range(1, 9)
    ]
    assert {"ditto", "next_token"} == {kind for found in kinds for kind in found}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", accumulate=2, on_step=stop)
    again, resumed = run(tmp_path / "cut", accumulate=2, resume=True)
    assert resumed.losses == whole.losses
    ours, theirs = again.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match=r"repetition.share was 0.5 and is 0.6"):
        run(tmp_path / "cut", accumulate=2, resume=True, share=0.6)


def test_accumulated_micro_batches_are_one_batch(tmp_path) -> None:
    """Each counts by its penalised targets."""

    def losses(name, **sizes):
        model = small_model()
        settings = small_settings(
            6, objective={"ditto": 1.0}, schedule="constant", warmup=0.0, **sizes
        )
        rows = repeated_rows(share=1.0)
        result = train(
            model, small_rows(), settings=settings, run_dir=tmp_path / name, repeated=rows
        )
        return result.losses

    whole = losses("whole", batch_size=4)
    assert losses("parts", batch_size=1, accumulate=4) == pytest.approx(whole, rel=1e-4)
    assert max(whole) > 1e-3, "there is something to penalise"


def test_objective_and_rows_belong_together(tmp_path) -> None:
    settings = small_settings(2, objective={"next_token": 1.0, "ditto": 1.0})
    with pytest.raises(UsageError, match="belong together"):
        train(small_model(), small_rows(), settings=settings, run_dir=tmp_path)
