from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from linearize.errors import UsageError
from linearize.training.tokenizer import train_bpe

TEXTS = [
    "def read(path):\n    return open(path).read()\n",
    "def write(path, text):\n    pass\n",
] * 3
TOKENIZER = train_bpe(TEXTS, vocab_size=280, context=64)


@given(st.text())
@example("a<s>b")  # a text may spell out a special token, and then has it
def test_every_text_survives(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_merges_are_learnt_and_nothing_is_added() -> None:
    assert len(TOKENIZER) == 280
    ids = TOKENIZER.encode("def read(path):")
    assert len(ids) < 10
    assert not set(ids) & {0, 1, 2}
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (0, 1, 2)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "def walk(path):\n        <s>é\t\n"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode("a  ,b")) == "a  ,b"
    assert loaded.model_max_length == 64
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")


def test_training_is_repeatable() -> None:
    again = train_bpe(iter(TEXTS), vocab_size=280, context=64)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_vocabularies_that_cannot_be_made() -> None:
    with pytest.raises(UsageError, match="bytes and special tokens take 259"):
        train_bpe(TEXTS, vocab_size=258)
    with pytest.raises(UsageError, match="more than the text gives"):
        train_bpe(["a b"], vocab_size=300)
