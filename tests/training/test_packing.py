import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from linearize.errors import InputError
from linearize.recipe import DataSettings
from linearize.training import packing
from linearize.training.packing import Rows, build_rows, row_at
from linearize.training.tokenizer import train_bpe

STORIES = [f"Story {i}: " + "the cat sat on the mat. " * (i % 7 + 1) for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_bpe(STORIES, vocab_size=280, context=32)


def corpus(path: Path, texts: list[str]) -> str:
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return str(path)


@st.composite
def packed(draw: st.DrawFn) -> tuple[list[list[int]], Rows]:
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    ends = np.cumsum([0, *lengths])
    tokens = np.arange(1, ends[-1] + 1, dtype=np.int32)  # all different, none is the pad
    documents = [tokens[a:b].tolist() for a, b in pairwise(ends)]
    rows = Rows(tokens, ends[:-1].astype(np.int64), draw(st.integers(2, 40)), draw(st.booleans()))
    return documents, rows


@settings(max_examples=60, deadline=None)
@given(packed())
def test_rows_hold_every_token_once_and_targets_stay_in_their_document(
    case: tuple[list[list[int]], Rows],
) -> None:
    documents, rows = case
    batch = rows.batch(range(len(rows)))
    ids, targets = batch["input_ids"], batch["targets"]
    assert ids.shape == targets.shape == (len(rows), rows.seq_len)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    flat = ids.flatten().tolist()
    every = [token for document in documents for token in document]
    assert flat == every + [rows.pad] * (len(flat) - len(every))
    follower = {a: b for document in documents for a, b in pairwise(document)}
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        for place, token in enumerate(row):
            last = place == rows.seq_len - 1
            assert wanted[place] == (-100 if last else follower.get(token, -100))


@settings(max_examples=60, deadline=None)
@given(packed())
def test_positions_restart_with_each_document_and_row(case: tuple[list[list[int]], Rows]) -> None:
    documents, rows = case
    batch = rows.batch(range(len(rows)))
    assert ("position_ids" in batch) == rows.boundaries
    if not rows.boundaries:
        return
    owner = {token: n for n, document in enumerate(documents) for token in document}
    for row, positions in zip(
        batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True
    ):
        expected, before = [], object()
        for token in row:
            document = owner.get(token)
            expected.append(expected[-1] + 1 if document == before else 0)
            before = document
        assert positions == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(-3, 3), st.integers(0, 4))
def test_row_order_is_a_permutation_per_epoch(n_rows: int, seed: int, epoch: int) -> None:
    order = [row_at(epoch * n_rows + i, n_rows, seed) for i in range(n_rows)]
    assert sorted(order) == list(range(n_rows))
    if n_rows > 20:
        assert order != [row_at((epoch + 1) * n_rows + i, n_rows, seed) for i in range(n_rows)]
        assert order != [row_at(epoch * n_rows + i, n_rows, seed + 1) for i in range(n_rows)]


def test_batches_refuse_rows_that_do_not_exist() -> None:
    rows = Rows(np.arange(10, dtype=np.int32), np.array([0]), 4)
    assert rows.batch([])["input_ids"].shape == (0, 4)
    for index in (3, -1):
        with pytest.raises(IndexError):
            rows.batch([0, index])


def test_build_rows_packs_documents_between_bos_and_eos(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = corpus(tmp_path / "a.txt", STORIES)
    train, held_out, info = build_rows(
        DataSettings(source=source, seq_len=16, eval_fraction=0.1, boundaries=False),
        tokenizer,
        10**6,
    )

    def packed_form(texts: list[str]) -> list[int]:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        return [t for text in texts for t in [bos, *tokenizer(text)["input_ids"], eos]]

    kept = [text for i, text in enumerate(STORIES) if i % 10 != 9]
    assert train.tokens.tolist() == packed_form(kept)
    assert tokenizer.decode(held_out.tokens).count("<s>Story") == 4
    assert train.tokens[train.starts].tolist() == [tokenizer.bos_token_id] * 36
    assert info == {
        "source": source,
        "documents": 36,
        "train_tokens": len(train.tokens),
        "eval_tokens": len(held_out.tokens),
    }
    bare, _, _ = build_rows(
        DataSettings(source=source, bos=False, eos=False, eval_fraction=0.1, boundaries=False),
        tokenizer,
        10**6,
    )
    assert not {0, 1} & set(bare.tokens.tolist())
    assert len(bare.tokens) == len(train.tokens) - 2 * 36


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=30),
    row=st.integers(4, 40),
    bos=st.booleans(),
)
def test_documents_that_fit_are_never_cut(lengths: list[int], row: int, bos: bool) -> None:
    """And longer ones become windows, each begun with bos; no token is lost or doubled."""
    numbers = iter(range(1, 10**6))
    documents = [[next(numbers) for _ in range(length)] for length in lengths]
    starts = np.cumsum([0, *lengths[:-1]])
    flat = np.array([t for d in documents for t in d], dtype=np.int32)
    tokens, at = packing.whole(flat, starts, row, [0] if bos else [])
    rows = Rows(tokens, at, row)
    assert len(tokens) == len(rows) * row
    assert sorted(t for t in tokens.tolist() if t > 0) == flat.tolist()
    held = [[t for t in r if t >= 0] for r in tokens.reshape(-1, row).tolist()]
    for document in documents:
        if len(document) <= row:
            assert any(document == r[i : i + len(document)] for r in held for i in range(len(r))), (
                "a document that fits was cut"
            )
    batch = rows.batch(range(len(rows)))
    ids, targets = batch["input_ids"], batch["targets"]
    known = targets != -100
    assert (targets[known] == ids[known] + 1)[ids[known] > 0].all(), "a target left its document"
    first = batch["position_ids"] == 0
    begins = {d[0] for d in documents}
    assert all(t in begins or t == 0 or not bos for t in ids[first].tolist())


def test_budgets_cut_the_same_stream(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = corpus(tmp_path / "a.txt", STORIES)
    whole = DataSettings(source=source, seq_len=16, eval_fraction=0.1, boundaries=False)
    everything, held_out, _ = build_rows(whole, tokenizer, 10**6)
    for budget, eval_tokens in [(1, 1000), (16, 5), (17, 40), (100, 100), (400, 7)]:
        settings = whole.model_copy(update={"eval_tokens": eval_tokens})
        train, held, _ = build_rows(settings, tokenizer, budget)
        assert len(train.tokens) == -(-budget // 16) * 16
        assert train.tokens.tolist() == everything.tokens[: len(train.tokens)].tolist()
        assert train.starts.tolist() == [s for s in everything.starts if s < len(train.tokens)]
        assert held.tokens.tolist() == held_out.tokens[:eval_tokens].tolist()


def test_one_document_is_split_at_the_end(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = " ".join(STORIES)
    source = corpus(tmp_path / "a.txt", [text])
    settings = DataSettings(source=source, seq_len=32, eval_fraction=0.2, boundaries=False)
    train, held_out, info = build_rows(settings, tokenizer, 10**6)
    joined = [*train.tokens.tolist(), *held_out.tokens.tolist()]
    assert joined == [0, *tokenizer(text)["input_ids"], 1]
    assert len(held_out.tokens) == round(0.2 * len(joined))
    assert info["documents"] == 1
    assert held_out.starts.tolist() == [0]


def test_held_out_text_of_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = DataSettings(
        source=corpus(tmp_path / "a.txt", STORIES),
        eval_source=corpus(tmp_path / "b.txt", ["the mat sat", "a cat"]),
        boundaries=False,
    )
    train, held_out, info = build_rows(settings, tokenizer, 10**6)
    assert info["documents"] == len(STORIES) == len(train.starts)
    assert tokenizer.decode(held_out.tokens) == "<s>the mat sat</s><s>a cat</s>"


def test_beginnings_are_of_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["the mat sat " * 30, "a cat", "the cat sat on " * 20]
    settings = DataSettings(
        source=corpus(tmp_path / "a.txt", STORIES),
        eval_source=corpus(tmp_path / "b.txt", texts),
        seq_len=32,
    )
    rows = packing.beginnings(settings, tokenizer)
    pieces = np.split(rows.tokens, rows.starts[1:])
    read = sorted(tokenizer.decode(p[p >= 0]) for p in pieces if (p >= 0).any())
    assert read[0] == "<s>a cat</s>"
    for one, text in zip(read[1:], (texts[2], texts[0]), strict=True):
        assert one.startswith("<s>")
        assert text.startswith(one.removeprefix("<s>"))
        assert len(one) > 32, "a whole row of it"
    assert (rows.tokens >= 0).sum() == 2 * 32 + len(tokenizer("a cat").input_ids) + 2  # bos, eos
    fewer = packing.beginnings(settings.model_copy(update={"eval_tokens": 40}), tokenizer)
    assert (fewer.tokens >= 0).sum() == 40
    none = DataSettings(source=corpus(tmp_path / "c.txt", ["a cat sat"]))
    with pytest.raises(InputError, match=r"no document of .* is held out"):
        packing.beginnings(none, tokenizer)


def test_text_shorter_than_a_row_makes_one_padded_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = DataSettings(source=corpus(tmp_path / "a.txt", ["a cat", "the mat"]), seq_len=64)
    train, held_out, _ = build_rows(settings, tokenizer, 1000)
    batch = train.batch([0])
    count = int((train.tokens >= 0).sum())
    assert len(train) == len(held_out) == 1
    assert (batch["input_ids"][0, count:] == tokenizer.pad_token_id).all()
    assert (batch["targets"][0, count - 1 :] == -100).all()
    with pytest.raises(InputError, match=r"holds 1 tokens to train on and 2 held out"):
        build_rows(DataSettings(source=corpus(tmp_path / "b.txt", ["a"])), tokenizer, 1000)


def test_real_tokenizers_add_no_second_bos_and_do_not_warn(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    tokenizer.model_max_length = 16
    source = str(shared / "data/tinystories/valid.txt")
    with caplog.at_level(logging.WARNING):
        settings = DataSettings(source=source, seq_len=128, boundaries=False)
        train, _, info = build_rows(settings, tokenizer, 20_000)
    assert info["train_tokens"] == 20_096
    first = train.tokens[train.starts[1] - 1 : train.starts[1] + 2].tolist()
    assert first[:2] == [tokenizer.eos_token_id, tokenizer.bos_token_id]
    assert first[2] != tokenizer.bos_token_id
    assert not caplog.records


def test_stock_models_keep_packed_documents_apart() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tokens = np.random.default_rng(0).integers(1, 64, 44).astype(np.int32)
    starts = np.array([0, 9, 15, 40])
    batch = Rows(tokens, starts, 24).batch([0, 1])
    with torch.no_grad():
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits.flatten(0, 1)
        for begin, end in [(0, 9), (9, 15), (15, 24), (24, 40), (40, 44)]:
            alone = model(torch.from_numpy(tokens[begin:end].astype(np.int64))[None]).logits[0]
            torch.testing.assert_close(packed[begin:end], alone, atol=1e-5, rtol=1e-4)
