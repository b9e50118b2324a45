"""RPG: what it penalises, how much, and what it leaves alone."""

import gzip
import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import linearize
from linearize import pretrained
from linearize.decoding.repetition import RPG, languages, vocabulary
from linearize.errors import InputError, UsageError
from linearize.eval.metrics.repetition import rep_n

pytest.importorskip("tree_sitter_python")
LOOP = "if x:\n    f(y)\n"
END = 1
# Reference solutions that do repeat themselves, at min_copies=4.
REPETITIVE = {"HumanEval/81", "HumanEval/124", "HumanEval/141"}


@pytest.fixture(scope="module")
def embedded():
    """(model, tokenizer); id 1 ends a text."""
    folder = pretrained.locate("embedded")
    return linearize.load(folder).float().eval(), pretrained.tokenizer(folder, False)


@pytest.fixture(scope="module")
def tokenizer(embedded):
    return embedded[1]


def step(tokenizer, text, *, scores=None, heard=None, prompt="\n", **options):
    """(logits before, logits after) for the token that follows prompt and text."""
    ids = tokenizer(prompt + text, add_special_tokens=False).input_ids
    start = max(1, len(tokenizer(prompt, add_special_tokens=False).input_ids))
    options = {"language": "python", "eos_token_id": END, "prompt_length": start} | options
    remedy = RPG(tokenizer, on_penalty=heard and heard.append, **options)
    if scores is None:
        scores = torch.randn(1, len(tokenizer), generator=torch.Generator().manual_seed(0))
    for end in range(start, len(ids)):
        remedy(torch.tensor([ids[:end]]), torch.zeros_like(scores))
    return scores[0], remedy(torch.tensor([ids]), scores)[0]


def changed(before, after):
    return set((before != after).nonzero().flatten().tolist())


def starts(tokenizer, word, width=None, column=None):
    return set(vocabulary.of(tokenizer).starting(word, width, column).tolist())


def test_only_tokens_that_start_another_copy_are_penalised(tokenizer):
    before, after = step(tokenizer, LOOP * 4, eos_boost=0.0)
    # Copies need not stand side by side, so another may begin at any column.
    wanted = starts(tokenizer, b"if") | starts(tokenizer, b"f")
    assert wanted
    assert changed(before, after) == wanted
    assert (after < before)[list(wanted)].all()


def test_the_end_gains_only_where_the_text_could_end(tokenizer):
    for text, gains in (
        (LOOP * 4, True),
        (LOOP * 4 + "if x:\n", False),
        ("x = [\n" + "    1,\n" * 4, False),
        (LOOP * 4 + "x = '''\n", False),
        (LOOP * 4 + "x", False),
    ):
        before, after = step(tokenizer, text)
        assert bool(after[END] > before[END]) is gains, text
        assert after[END] >= before[END]


def test_an_endless_loop_may_end_anywhere(tokenizer):
    before, after = step(tokenizer, "x = (" + "a + " * 120)
    assert after[END] > before[END]


def test_a_string_that_repeats_its_lines_may_close(tokenizer):
    before, after = step(tokenizer, '"""\n' + "The same line.\n" * 4)
    closing = starts(tokenizer, b'"""')
    assert (after > before)[list(closing)].all()
    assert (after < before)[list(starts(tokenizer, b"The"))].all()
    assert changed(before, after) == closing | starts(tokenizer, b"The")


def test_loops_of_words_are_seen_wherever_lines_end(tokenizer):
    text = '"""It is the same as\n  a list of the same as a list of\n  the same\n  as a list of the'
    heard = [None]
    before, after = step(tokenizer, text, heard=heard, eos_boost=0.0)
    same = set(tokenizer(" same same", add_special_tokens=False).input_ids)
    assert changed(before, after) >= same
    assert all(
        vocabulary.of(tokenizer).pieces[t].strip() == b"same" for t in changed(before, after)
    )
    assert heard[-1].reason == "3 copies of ' same as a list of the'"
    before, after = step(tokenizer, text + ' """ + a list of the', eos_boost=0.0)
    assert not changed(before, after), "the string is over"


def test_a_copy_is_penalised_where_it_has_begun(tokenizer):
    text = "if x:\n    f(y)\nif x:\n"
    before, after = step(tokenizer, text)
    assert changed(before, after) == starts(tokenizer, b"f")
    assert (after <= before).all()
    before, after = step(tokenizer, text, min_copies=4)
    assert not changed(before, after)


def test_soon_after_a_loop_one_copy_will_do(tokenizer):
    loop = "# the name of a thing of a thing of a thing of a thing\n"
    words = "name value key item text line path file list data node size type time test code"
    long = f"a = {words.replace(' ', ' + ')}\nb = ({words.title().replace(' ', ' - ')})\n"
    for text, wanted in (
        (loop + "if x:\n    f(y)\n", {b"if": 0, b"f": 4}),
        ("if x:\n    f(y)\n", {}),
        (loop + long + "if x:\n    f(y)\n", {}),
    ):
        before, after = step(tokenizer, text, eos_boost=0.0)
        lowered = (starts(tokenizer, word, at, at) for word, at in wanted.items())
        assert changed(before, after) == set().union(*lowered), text


def test_a_string_that_loops_inside_a_line_may_close(tokenizer):
    before, after = step(tokenizer, 'f("a name' + " of a name" * 8)
    closing = starts(tokenizer, b'"')
    assert (after > before)[list(closing)].all()


def test_a_list_that_repeats_itself_may_close_after_a_comma(tokenizer):
    closing = list(starts(tokenizer, b")"))
    for text, gains in (("f(0, 0, 0, 0,", True), ("f(0, 0, 0, 0", False), ("f(0, 1, 2,", False)):
        before, after = step(tokenizer, text)
        assert bool((after > before)[closing].all()) is gains, text
    before, after = step(tokenizer, "f(0, 0, 0, 0,", prompt="int a[] =", language="c")
    assert not (after > before)[closing].any(), "C has no comma before `)`"
    brace = list(starts(tokenizer, b"}"))
    before, after = step(tokenizer, " {0, 0, 0, 0,", prompt="int a[] =", language="c")
    assert (after > before)[brace].all()


def test_the_penalty_grows_with_the_copies_and_stops_with_the_pattern(tokenizer):
    [token] = starts(tokenizer, b"if", 0, 0) & set(tokenizer("if x").input_ids)
    losses = []
    for copies in range(1, 8):
        before, after = step(tokenizer, LOOP * copies, eos_boost=0.0, strength=1.5)
        losses.append((before - after)[token].item())
    assert losses == pytest.approx([0, 1.5, 3, 4.5, 6, 7.5, 9], abs=1e-4)
    before, after = step(tokenizer, LOOP * 7, eos_boost=0.0, strength=1.5, max_count=2)
    assert (before - after)[token].item() == pytest.approx(3, abs=1e-4)
    new = "".join(f"a{n} = g{n}({n})\nb.c{n}()\nreturn {n}\n" for n in range(10))
    before, after = step(tokenizer, LOOP * 4 + new, eos_boost=0.0)
    assert token not in changed(before, after)


@pytest.mark.parametrize("mode", ["nats", "centred", "signed"])
@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
def test_every_mode_lowers_logits_of_either_sign(tokenizer, mode, shift):
    scores = torch.randn(1, len(tokenizer), generator=torch.Generator().manual_seed(1)) + shift
    token = next(iter(starts(tokenizer, b"if", 0, 0)))
    scores[0, token] = scores.max() + 1
    before, after = step(tokenizer, LOOP * 4, scores=scores, eos_boost=0.0, mode=mode, strength=0.5)
    assert after.isfinite().all()
    assert after[token] < before[token]
    assert (after <= before).all()
    share = torch.tensor(-1.5).exp().item()  # three copies count
    wanted = {
        "nats": before[token] - 1.5,
        "centred": before.mean() + (before[token] - before.mean()) * share,
        "signed": before[token] * share if before[token] > 0 else before[token] / share,
    }
    torch.testing.assert_close(after[token], wanted[mode])


def test_copies_in_the_prompt_count_only_if_asked(tokenizer):
    for count in (False, True):
        before, after = step(tokenizer, "", prompt=LOOP * 4, count_prompt=count)
        assert bool(changed(before, after)) is count


def test_copies_in_the_prompt_count_once_the_text_repeats_them(tokenizer):
    [token] = starts(tokenizer, b"if", 0, 0) & set(tokenizer("if x").input_ids)
    for written, copies in (("", 0), ("y = 1\n", 0), (LOOP, 5), (LOOP * 2, 6)):
        before, after = step(tokenizer, written, prompt=LOOP * 4, eos_boost=0.0)
        lost = max(0, copies - 1) * 4.0
        assert (before - after)[token].item() == pytest.approx(lost, abs=1e-4), written
        assert copies or not changed(before, after)
    before, after = step(tokenizer, LOOP, prompt=LOOP * 4, count_prompt=False)
    assert not changed(before, after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count_prompt": "all"}, "count_prompt='all' is not known"),
        ({"strength": -1.0}, "strength=-1 is negative"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"min_copies": 1}, "min_copies=1 is below 2"),
        ({"min_verbatim": 0}, "min_verbatim=0 is below 2"),
        ({"mode": "prob"}, "mode 'prob' is not known"),
        ({"language": "rusty"}, "no grammar for language 'rusty'"),
    ],
)
def test_options_out_of_range(tokenizer, options, message):
    with pytest.raises(UsageError, match=message):
        RPG(tokenizer, **options)


def test_a_grammar_that_is_not_installed_is_named(tokenizer, monkeypatch):
    languages.parser.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter_rust", None)
    with pytest.raises(InputError, match=r"pip install \"linearize\[rpg-rust\]\""):
        RPG(tokenizer, language="rust")


def test_loops_inside_a_line_are_verbatim(tokenizer):
    heard = [None]
    before, after = step(tokenizer, "x = a(b(b(b(b(b(b(b(", heard=heard)
    assert any("copies of" in penalty.reason for penalty in heard[1:])
    assert changed(before, after)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 60), copies=st.integers(1, 5))
def test_any_other_logit_stays_bit_for_bit(cut, copies):
    tokenizer = pretrained.tokenizer(pretrained.locate("embedded"), False)
    heard = [None]
    before, after = step(
        tokenizer, (LOOP + "é = '日本'\r\n\tg()\n") * copies + LOOP[:cut], heard=heard
    )
    last = {p.position for p in heard[1:]} and max(p.position for p in heard[1:])
    touched = {t for p in heard[1:] if p.position == last for t in p.tokens}
    assert changed(before, after) <= touched


def test_a_batch_is_its_rows_in_any_order(tokenizer):
    texts = [LOOP * n + "x = 1\n" * m for n, m in ((4, 0), (0, 5), (3, 3), (1, 1))]
    texts += ["def f(a):\n" + "    # no\n" * 5, "[1, 1, 1, 1, 1, 1, ", "'''\n" + "a b\n" * 6, "y"]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    width = max(map(len, rows)) + 1
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    scores = torch.randn(8, len(tokenizer), generator=torch.Generator().manual_seed(2))
    options = {"language": "python", "eos_token_id": END, "pad_token_id": 0, "count_prompt": True}
    together = RPG(tokenizer, **options)(ids, scores)
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    assert torch.equal(RPG(tokenizer, **options)(ids[order], scores[order]), together[order])
    for row in range(8):
        alone = RPG(tokenizer, **options)(torch.tensor([rows[row]]), scores[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert sum(not torch.equal(a, b) for a, b in zip(together, scores, strict=True)) >= 6


@pytest.mark.parametrize(
    "prompt", ["class Queue:\n    def __init__(self", "import os\nimport os\n", "x = [0, 0,"]
)
def test_loops_of_a_real_model_break(embedded, prompt):
    model, tokenizer = embedded
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    mask = torch.ones_like(ids)
    run = {"max_new_tokens": 160, "do_sample": False, "eos_token_id": END, "pad_token_id": 2}
    texts = []
    for remedies in ([], [RPG(tokenizer, language="python", eos_token_id=END)]):
        out = model.generate(ids, attention_mask=mask, logits_processor=remedies, **run)
        texts.append(out[0, ids.shape[1] :].tolist())
    greedy, penalised = (rep_n([text], 4) for text in texts)
    assert greedy > 0.5, "the model loops"
    assert penalised < 0.6 * greedy, texts


def test_beams_with_a_real_model(embedded):
    model, tokenizer = embedded
    ids = torch.tensor([tokenizer("import os\nimport os\n", add_special_tokens=False).input_ids])
    remedy = RPG(tokenizer, language="python", eos_token_id=END)
    run = {"max_new_tokens": 24, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    run |= {"attention_mask": torch.ones_like(ids), "eos_token_id": END, "pad_token_id": 2}
    out = model.generate(ids, logits_processor=[remedy], **run)
    assert len(out) == 2


def test_reference_solutions_are_left_alone(shared, tokenizer):
    """No token of a solution is penalised at min_copies=4 but in those that repeat themselves."""
    with gzip.open(shared / "data" / "HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    remedy = RPG(tokenizer, language="python", eos_token_id=END, min_copies=4)
    scores, hit = torch.zeros(len(tokenizer)), set()
    for problem in problems:
        state = remedy.start(tokenizer(problem["prompt"], add_special_tokens=False).input_ids)
        for token in tokenizer(problem["canonical_solution"], add_special_tokens=False).input_ids:
            for change in remedy.changes(state, scores):
                if (change.logits[change.tokens == token] < 0).any():
                    hit.add(problem["task_id"])
            remedy.extend(state, token)
    assert hit <= REPETITIVE
