"""Text that grows token by token is the text of all tokens, and stop strings never show."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from linearize.decoding.text import Continuation

STORY = 'Once upon a time, "Zoë" said: naïve 日本 🙂!\nThen\n\nshe left.'


@pytest.fixture(scope="module", params=["stories260K", "TinyStories-656K"])
def tokenizer(request, shared):
    return AutoTokenizer.from_pretrained(shared / "data" / "models" / request.param)


def grow(tokenizer, prompt, tokens, **options):
    row = Continuation(prompt, tokenizer, **{"stop": [], "eos": [], **options})
    shown = []
    for token in tokens:
        if row.finish is None:
            shown.append(row.add(token))
    shown.append(row.close())
    assert "".join(shown) == row.text
    return row


def test_pieces_add_up_to_one_decode_of_everything(tokenizer):
    ids = tokenizer(STORY).input_ids
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert whole.endswith("!\nThen\n\nshe left.")
    for cut in range(1, len(ids)):
        before = tokenizer.decode(ids[:cut], skip_special_tokens=True)
        if before.endswith("�"):
            continue  # the prompt itself would end inside a character
        assert before + grow(tokenizer, ids[:cut], ids[cut:]).text == whole


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="abST OP\n", max_size=12), st.sampled_from(["STOP", "\n\n", "b", "OP S"]))
def test_text_ends_before_the_first_stop_string(tokenizer, text, stop):
    prompt = tokenizer("Once").input_ids
    tokens = tokenizer("Once" + text).input_ids[len(prompt) :]
    whole = grow(tokenizer, prompt, tokens).text
    row = grow(tokenizer, prompt, tokens, stop=[stop])
    assert row.text == whole.split(stop)[0]
    assert (row.finish == "stop") == (stop in whole)


def test_the_earliest_of_several_stop_strings_counts(tokenizer):
    ids = tokenizer("a").input_ids
    row = grow(tokenizer, ids, tokenizer(STORY).input_ids[1:], stop=["left", "Then", "she"])
    assert row.text.endswith("!\n")
    assert row.finish == "stop"


def test_nothing_that_may_become_a_stop_string_is_shown_early(tokenizer):
    prompt = tokenizer("a").input_ids
    row = Continuation(prompt, tokenizer, stop=["she went"], eos=[])
    shown = ""
    for token in tokenizer(STORY).input_ids[1:]:
        shown += row.add(token)
        assert "she went"[:1] != shown[-1:], "held back until it cannot be the stop string"
    assert shown + row.close() == row.text
    assert row.finish is None


def test_the_end_token_ends_and_is_counted_but_not_shown(tokenizer):
    prompt, eos = tokenizer("Once").input_ids, tokenizer.eos_token_id
    tokens = tokenizer("Once upon").input_ids[len(prompt) :]
    row = grow(tokenizer, prompt, [*tokens, eos, *tokens], eos=[eos])
    assert row.finish == "eos"
    assert row.ids == [*tokens, eos]
    assert row.text.endswith("upon"[-1])
