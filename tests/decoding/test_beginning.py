"""A beginning that is read once changes the time, not the text."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import linearize
from linearize.decoding import begin, generate
from linearize.errors import InputError, UsageError

DOCUMENT = "Once upon a time, there was a little girl who had a dog and a big red ball. " * 3
ENDS = ["One day, the dog", "She said", "The girl and her dog went to the park to play. Then"]
PROMPTS = [DOCUMENT + end for end in ENDS]


@pytest.fixture(scope="module", params=["base", "converted"])
def pair(request, shared):
    path = shared / "data" / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(path)
    if request.param == "converted":
        model = linearize.apply(model, linearize.LigerSpec(mix="fixed", window=16))
    return model, AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 2},
        {"sampler": "sample", "num_return": 2, "seed": 3},
        {"sampler": "beam", "num_beams": 2},
        {"remedies": ["dry"]},
    ],
    ids=str,
)
def test_the_text_is_that_without_it(pair, options):
    model, tokenizer = pair
    beginning = begin(model, tokenizer, DOCUMENT)
    held = [x.clone() for x in _tensors(beginning.cache)]
    options = {"max_new_tokens": 12, **options}
    expected = generate(model, tokenizer, PROMPTS, **options)
    for _ in range(2):  # nothing is used up
        found = generate(model, tokenizer, PROMPTS, beginning=beginning, **options)
        assert [x.ids for x in found] == [x.ids for x in expected]
        assert [x.prompt_tokens for x in found] == [x.prompt_tokens for x in expected]
    assert all(map(torch.equal, _tensors(beginning.cache), held))


def test_what_is_known_is_not_read_again(pair):
    model, tokenizer = pair
    beginning, read = begin(model, tokenizer, DOCUMENT), []

    def count(module, args, kwargs):
        read.append((args[0] if args else kwargs["input_ids"]).shape[1])

    hook = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        found = generate(model, tokenizer, PROMPTS[0], beginning=beginning, max_new_tokens=2)
    finally:
        hook.remove()
    assert read == [found[0].prompt_tokens - len(beginning.ids), 1]


def test_prompts_that_begin_otherwise_are_refused(pair):
    model, tokenizer = pair
    beginning = begin(model, tokenizer, DOCUMENT)
    with pytest.raises(InputError, match="prompt 1 leaves the beginning at token"):
        generate(model, tokenizer, [PROMPTS[0], "Tom and his dog"], beginning=beginning)
    with pytest.raises(InputError, match="nothing else"):
        generate(model, tokenizer, [beginning.ids], beginning=beginning)
    with pytest.raises(InputError, match="saves nothing"):
        begin(model, tokenizer, [5, 6])


def test_a_model_that_reads_prompts_whole_has_no_beginning(shared):
    path = shared / "data" / "models" / "stories260K"
    model = linearize.apply(
        AutoModelForCausalLM.from_pretrained(path), linearize.LigerSpec(prefix="jrt")
    )
    with pytest.raises(UsageError, match="give prompts whole"):
        begin(model, AutoTokenizer.from_pretrained(path), DOCUMENT)


def _tensors(cache):
    for entry in cache.layers:
        yield from (entry.keys, entry.values, *getattr(entry, "recurrent_states", {}).values())
