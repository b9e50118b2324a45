"""Every remedy of the registry: a prompt's text depends on nothing beside it."""

import inspect

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.decoding import generate
from linearize.decoding.remedies import REMEDIES, make
from linearize.errors import InputError

# Loops from the start, code that repeats, prose, and one that is much longer than the others.
PROMPTS = [
    "if x == 1:\n    return 1\nelif x == 2:\n    return 2\nelif x == 3:\n    return 3\n",
    "a = 1\na = 1\na = 1\n",
    "The dog ran. The dog ran.",
    "def f(a, b):\n    assert a\n    assert b\n" * 6,
]
SAMPLERS = [
    {},
    {"sampler": "sample", "temperature": 0.7, "top_k": 30, "seed": 5},
    {"sampler": "beam", "num_beams": 3},
]


@pytest.fixture(scope="module")
def pair(shared):
    folder = shared / "golden" / "anti_repetition"  # undertrained, so it loops
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny_llama")
    return model, AutoTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(params=sorted(REMEDIES))
def remedy(request, pair):
    options = {}
    if "language" in inspect.signature(REMEDIES[request.param]).parameters:
        options["language"] = "python"
    try:
        make({request.param: options}, pair[1])
    except InputError as error:
        pytest.skip(str(error))
    return {request.param: options}


@pytest.mark.parametrize("options", SAMPLERS, ids=lambda o: o.get("sampler", "greedy"))
def test_alone_and_in_any_batch(pair, remedy, options):
    model, tokenizer = pair
    asked = {"remedies": remedy, "max_new_tokens": 40, **options}
    free = generate(model, tokenizer, PROMPTS, **asked)
    ends = free[1].ids[12]  # makes rows end at different times
    stored = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [2, ends]
    try:
        together = generate(model, tokenizer, PROMPTS, batch_size=32, **asked)
        turned = generate(model, tokenizer, PROMPTS[::-1], batch_size=6, **asked)[::-1]
        alone = [generate(model, tokenizer, p, **asked)[0] for p in PROMPTS]
    finally:
        model.generation_config.eos_token_id = stored
    assert [r.ids for r in together] == [r.ids for r in alone]
    assert [r.ids for r in together] == [r.ids for r in turned]
    ended_early = len({len(r.ids) for r in together}) > 1
    assert ended_early or "beam" in options.values(), "a search may avoid the end token"


def test_what_changed_is_told_the_same_alone_and_in_a_batch(pair, remedy):
    model, tokenizer = pair

    def heard(prompts, **options):
        told = [[] for _ in prompts]
        results = generate(
            model,
            tokenizer,
            prompts,
            remedies=remedy,
            max_new_tokens=30,
            on_penalty=lambda prompt, penalty: told[prompt].append(penalty),
            **options,
        )
        for result, penalties in zip(results, told, strict=True):
            for p in penalties:
                assert 0 <= p.position < len(result.ids)
                assert p.row == 0
        # Logits of a batch differ in the last digits.
        about = [
            [(p.position, p.tokens, p.reason, p.would_have_been, p.now) for p in penalties]
            for penalties in told
        ]
        return results, about

    results, together = heard(PROMPTS)
    assert together == [heard([p])[1][0] for p in PROMPTS]
    for result, penalties in zip(results, together, strict=True):
        last = {position: now for position, *_, now in penalties}
        assert all(result.ids[position] == now for position, now in last.items())
