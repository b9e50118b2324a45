"""Every remedy on anything: no crash, no NaN, and logits it does not report stay bit for bit."""

import pytest
import torch
from every_remedy import NEUTRAL, build, every_remedy
from hypothesis import event, given, settings
from hypothesis import strategies as st

from linearize.decoding.remedies import REMEDIES, options_of

SIZE = 1952
CASES = 2000  # through every remedy, or through all of them together
STEPS = 12
PROGRAMS = {
    "python": "def f(x):\n    if x == 1:\n        return 'a'\n    elif x:\n        return [b, 2]\n",
    "go": 'package main\n\nfunc main() {\n\tx := []int{1, 2}\n\tfmt.Println("x", x[0])\n}\n',
    "java": "class A {\n  int f(int x) {\n    switch (x) { case 1: return 2; }\n  }\n}\n",
    "javascript": "const f = (x) => {\n  if (x) { g(`a${x}`); }\n  else if (y) { h(/a/g); }\n};\n",
    "typescript": "interface A { x: number }\nfunction f<T>(a: T): A { return { x: 1 } }\n",
    "c": "#include <a.h>\nint main(void) {\n  /* x */ int a[] = {1, 2};\n  a[0]++;\n}\n",
    "cpp": "template <class T> struct A { T x = 1; };\nint main() { A<int> a; a.x = 2; }\n",
    "rust": "fn main() {\n    let x = vec![1];\n    match x[0] { 1 => f(), _ => g(&x) }\n}\n",
}


def programs(tokenizer, draw):
    text = PROGRAMS[draw(st.sampled_from(sorted(PROGRAMS)))]
    lines = text.splitlines(keepends=True)
    again = "".join(draw(st.lists(st.sampled_from(lines), max_size=4)))
    cut = draw(st.integers(0, len(text)))
    return tokenizer(text[:cut] + again + again).input_ids


def random_bytes(tokenizer, draw):
    text = draw(st.binary(max_size=24)).decode("utf-8", errors="replace")
    return tokenizer(text * draw(st.integers(1, 3))).input_ids


def random_tokens(tokenizer, draw):
    few = draw(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=4))
    return draw(st.lists(st.sampled_from(few), max_size=40))


def texts(tokenizer, draw):
    kind = draw(st.sampled_from([programs, random_bytes, random_tokens]))
    return kind(tokenizer, draw)


def random_logits(draw, height):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(height, SIZE, generator=generator) * draw(st.sampled_from([1, 30, 1000]))
    shape = draw(st.sampled_from(["free", "negative", "log-probabilities", "some impossible"]))
    if shape == "negative":
        scores -= scores.max() + 1
    elif shape == "log-probabilities":
        scores = scores.log_softmax(-1)
    elif shape == "some impossible":
        scores[torch.rand(height, SIZE, generator=generator) < 0.5] = -torch.inf
    return scores.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(CASES // len(REMEDIES) + 1, id="quick"),
        pytest.param(CASES, id="all", marks=pytest.mark.slow),
    ],
)
@every_remedy
def test_anything_goes(looping, name, cases):
    _, tokenizer, _ = looping
    build(name, tokenizer)  # skips here, once

    @settings(max_examples=cases, deadline=None)
    @given(data=st.data())
    def check(data):
        draw = data.draw
        options = {"language": draw(st.sampled_from(sorted(PROGRAMS)))} if name == "rpg" else {}
        if "count_prompt" in options_of(name):
            counted = [False, True] + ["repeated"] * (name == "rpg")
            options["count_prompt"] = draw(st.sampled_from(counted))
        elif "scope" in options_of(name):
            options["scope"] = draw(st.sampled_from(["output", "prompt", "all"]))
        remedy = REMEDIES[name](tokenizer, pad_token_id=0, **options)
        heard = []
        remedy.on_penalty = heard.append
        rows = [texts(tokenizer, draw) for _ in range(draw(st.integers(1, 2)))]
        width = max(*map(len, rows), 1)
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        scores = random_logits(draw, len(rows))
        before = scores.clone()
        prompt = draw(st.integers(max(width - STEPS, 1), width))
        for end in range(prompt, width + 1):
            heard.clear()
            out = remedy(ids[:, :end], scores)
            assert torch.equal(scores, before), "the input is left alone"
            assert out.dtype == scores.dtype
            assert not out.isnan().any()
            assert (out > -torch.inf).any(-1).all()
            if not heard:
                assert out is scores
                continue
            want = scores.clone()
            for penalty in heard:
                assert len(set(penalty.tokens)) == len(penalty.tokens)
                want[penalty.row, penalty.tokens] = torch.tensor(penalty.after).to(want)
            assert torch.equal(out, want)

    check()


@every_remedy
def test_copied_and_swapped_rows_are_treated_like_rows_that_were_always_alone(looping, name):
    _, tokenizer, _ = looping
    build(name, tokenizer)  # skips here, once
    start, *loop = tokenizer("if x:\n" * 30).input_ids
    other = tokenizer.convert_tokens_to_ids("y")

    def logits(ids):
        scores = torch.randn(SIZE, generator=torch.Generator().manual_seed(hash(tuple(ids))))
        scores[loop[len(ids) - 1]] += 8  # as a looping model wants it
        return scores

    @settings(max_examples=30, deadline=None)
    @given(data=st.data())
    def check(data):
        together, steps = build(name, tokenizer), {}
        rows = [[start, *loop[:4]]] * 2
        for _ in range(40):
            got = together(torch.tensor(rows), torch.stack([logits(row) for row in rows]))
            steps |= dict(zip(map(tuple, rows), got, strict=True))
            sources = data.draw(st.sampled_from([[0, 1], [1, 0], [0, 0], [1, 1]]))
            strays = data.draw(st.sampled_from([[], [], [], [0], [1]]))
            ended = rows
            rows = [[*rows[i], loop[len(rows[i]) - 1]] for i in sources]
            for row in strays:
                rows[row][-1] = other
        for ids in ended:
            alone, acted = build(name, tokenizer), False
            for end in range(5, len(ids) + 1):
                before = logits(ids[:end])[None]
                after = alone(torch.tensor([ids[:end]]), before)
                assert torch.equal(after[0], steps[tuple(ids[:end])])
                acted |= after is not before
            event(f"acted: {acted}")

    check()


@every_remedy
def test_switched_off_it_hands_back_the_same_tensor(looping, name):
    _, tokenizer, prompts = looping
    off = {"count_prompt": True} if "count_prompt" in options_of(name) else {}
    remedy = build(name, tokenizer, **NEUTRAL[name], **off)
    scores = torch.randn(1, SIZE)
    loop = tokenizer("x = foo(1)\n" * 6).input_ids
    for end in range(1, len(loop) + 1):
        assert remedy(torch.tensor([loop[:end]]), scores) is scores


@pytest.mark.parametrize("name", ["rpg-released", "ditto-cap", "dry", "repetition-penalty"])
def test_not_a_number_harms_no_other_token(looping, name):
    _, tokenizer, _ = looping
    remedy = build(name, tokenizer)
    scores = torch.randn(1, SIZE)
    scores[0, ::7] = torch.nan
    loop = tokenizer("x = foo(1)\n" * 6).input_ids
    for end in range(1, len(loop) + 1):
        out = remedy(torch.tensor([loop[:end]]), scores)
        assert torch.equal(out.isnan(), scores.isnan())
