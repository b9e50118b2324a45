"""Tokens as bytes, for every kind of tokenizer at hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from linearize import pretrained
from linearize.decoding.repetition import vocabulary

KINDS = ["embedded", "golden", "stories260K", "TinyStories-656K"]
TEXTS = st.lists(
    st.sampled_from(["if", " ", "\n", "    ", "é", "日本", "🙂", "x1", "\t", "()"])
).map("".join)


def words(*, joined=()):
    """A word-level tokenizer without bytes, spelt like WordPiece."""
    vocab = ["[UNK]", "el", "##if", "if", "elif", "elifx", "(", "[SEP]", *joined]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]", unk_token="[UNK]")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    if request.param == "embedded":
        return pretrained.tokenizer(pretrained.locate("embedded"), False)
    shared = request.getfixturevalue("shared")
    folder = {"golden": shared / "golden" / "anti_repetition" / "tokenizer"}
    return AutoTokenizer.from_pretrained(
        folder.get(request.param, shared / "data" / "models" / request.param)
    )


def test_pieces_in_a_row_are_the_text(tokenizer):
    known = vocabulary.of(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(text=TEXTS)
    def check(text):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        got = known.text(ids)
        if known.leading_blank and got.startswith(b" "):
            got = got[1:]
        if tokenizer.unk_token_id not in ids:
            assert got.decode() == text

    check()


def test_special_tokens_and_ids_beyond_say_nothing(tokenizer):
    known = vocabulary.of(tokenizer)
    assert known.text([*tokenizer.all_special_ids, len(tokenizer), 10**9, -1]) == b""
    assert vocabulary.of(tokenizer) is known


def test_added_tokens_are_what_they_look_like():
    tokenizer = words()
    tokenizer.add_tokens([" Ġnew é"])
    known = vocabulary.of(tokenizer)
    new = tokenizer.convert_tokens_to_ids(" Ġnew é")
    assert known.text([new]).decode().strip() == "Ġnew é"


def test_wordpiece_is_read_as_far_as_it_goes():
    tokenizer = words()
    known = vocabulary.of(tokenizer)
    assert known.text(tokenizer.convert_tokens_to_ids(["elif", "[SEP]", "("])) == b"elif("


@pytest.mark.parametrize(
    ("width", "column", "found"),
    [
        (None, None, ["el", "elif", "elif(", " elif", " elif(", "    el", "\n    elif"]),
        (0, None, ["el", "elif", "elif(", "\n    elif"]),
        (1, 0, [" elif", " elif("]),
        (-1, 4, ["\n    elif"]),
        (-1, 3, []),
    ],
)
def test_tokens_that_begin_a_word(width, column, found):
    pieces = ["elif(", " elif", " elif(", "    el", "\n    elif", "lif", "elify", " elif_", "e l"]
    vocab = {w: i for i, w in enumerate(["[UNK]", "el", "elif", "elifx", "if", "[SEP]", *pieces])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    known = vocabulary.of(tokenizer)
    ids = known.starting(b"elif", width, column).tolist()
    assert sorted(tokenizer.convert_ids_to_tokens(ids)) == sorted(found)
    assert known.joins_lines


def test_a_bracket_may_be_followed_by_anything():
    known = vocabulary.of(words(joined=["()", "(x"]))
    assert {known.pieces[i] for i in known.starting(b"(", 0, 0).tolist()} == {b"(", b"()", b"(x"}
