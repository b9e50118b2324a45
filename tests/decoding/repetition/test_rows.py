"""State that follows its row: through appends, reorderings, copies, dropped rows and roll-backs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from linearize.decoding.repetition.rows import RowProcessor

PAD = 9
SIZE = 10


class Diary(RowProcessor):
    """Remembers the prompt it started from and what followed; lowers nothing."""

    def start(self, prompt):
        return [tuple(prompt)]

    def extend(self, state, token):
        state.append(token)

    def fork(self, state):
        return [*state]

    def changes(self, state, scores):
        return ()


def shown(diary, rows):
    diary(torch.tensor(rows), torch.zeros(len(rows), SIZE))
    return diary._states


def expected(rows, prompt):
    result = []
    for row in rows:
        pads = next((i for i, t in enumerate(row[:prompt]) if t != PAD), prompt)
        result.append([tuple(row[pads:prompt]), *row[prompt:]])
    return result


tokens = st.integers(0, 2)  # few, so that rows become equal


@st.composite
def prompts(draw):
    width, height = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rows = []
    for _ in range(height):
        pads = draw(st.integers(0, width - 1))
        body = st.lists(tokens, min_size=width - pads, max_size=width - pads)
        rows.append([PAD] * pads + draw(body))
    return rows


def grow(draw, rows):
    """Every new row is an old one and a token more; rows may be copied, dropped and swapped."""
    sources = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
    return [[*rows[source], draw(tokens)] for source in sources]


@given(start=prompts(), told=st.booleans(), data=st.data())
def test_a_state_is_what_a_replay_of_its_row_gives(start, told, data):
    prompt = len(start[0])
    diary = Diary(pad_token_id=PAD, prompt_length=prompt if told else None)
    rows = start
    assert shown(diary, rows) == expected(rows, prompt)
    for _ in range(data.draw(st.integers(1, 6))):
        move = data.draw(st.sampled_from(["append", "grow", "shorten"] + ["jump"] * told))
        if move == "append":
            rows = [[*row, data.draw(tokens)] for row in rows]
        elif move == "grow":
            rows = grow(data.draw, rows)
        elif move == "shorten":  # a speculative loop takes tokens back and puts one of its own
            kept = data.draw(st.integers(prompt, len(rows[0])))
            rows = [row[:kept] for row in rows]
            if kept > prompt and data.draw(st.booleans()):
                rows = [[*row[:-1], data.draw(tokens)] for row in rows]
        else:  # several accepted tokens at once
            rows = [row + data.draw(st.lists(tokens, min_size=2, max_size=2)) for row in rows]
        assert shown(diary, rows) == expected(rows, prompt)


@given(first=prompts(), second=prompts(), data=st.data())
def test_one_instance_serves_several_prompts(first, second, data):
    diary = Diary(pad_token_id=PAD)
    rows = first
    shown(diary, rows)
    for _ in range(data.draw(st.integers(0, 3))):
        rows = grow(data.draw, rows)
        shown(diary, rows)
    if len(second[0]) == len(rows[0]) + 1:
        diary.reset()  # one token longer may be the old text going on; `generate` makes new ones
    elif len(first[0]) < len(second[0]) <= len(rows[0]):
        diary.reset()  # may be a roll-back
    assert shown(diary, second) == expected(second, len(second[0]))


def test_the_tokenizers_padding_is_the_default():
    class Tokenizer:
        pad_token_id = 7

    assert Diary(Tokenizer()).pad_token_id == 7
    assert Diary(Tokenizer(), pad_token_id=PAD).pad_token_id == PAD
    assert Diary().pad_token_id is None
