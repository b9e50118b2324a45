"""Every remedy inside plain `model.generate`: batches, early ends, beams, streams, second calls."""

import pytest
import torch
from every_remedy import build, every_remedy
from transformers.generation.streamers import BaseStreamer

PAD = 0
NEW = 60


def batch(prompts):
    longest = max(map(len, prompts))
    ids = [[PAD] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def run(looping, prompts, processor=None, **options):
    model, _, _ = looping
    inputs = batch(prompts)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD} | options
    processors = [] if processor is None else [processor]
    out = model.generate(**inputs, logits_processor=processors, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def cut(ids, end):
    return ids[: ids.index(end) + 1] if end in ids else ids


@every_remedy
def test_it_changes_what_loops(looping, name):
    _, tokenizer, prompts = looping
    free = run(looping, prompts)
    assert run(looping, prompts, build(name, tokenizer)) != free


@every_remedy
def test_a_batch_is_one_by_one(looping, name):
    _, tokenizer, prompts = looping
    remedy = build(name, tokenizer)
    remedy.pad_token_id = PAD
    together = run(looping, prompts, remedy)
    assert [run(looping, [p], remedy)[0] for p in prompts] == together  # later calls, same instance


@every_remedy
def test_rows_that_end_early_do_not_disturb_the_others(looping, name):
    _, tokenizer, prompts = looping
    remedy = build(name, tokenizer)
    remedy.pad_token_id = PAD
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    end = tokenizer.convert_tokens_to_ids("▁in")
    for stop in (newline, end):
        together = run(looping, prompts, remedy, eos_token_id=stop)
        alone = [run(looping, [p], remedy, eos_token_id=stop)[0] for p in prompts]
        assert [cut(row, stop) for row in together] == [cut(row, stop) for row in alone]
    assert len({len(cut(row, end)) for row in together}) > 1, "rows end at different times"


@every_remedy
@pytest.mark.parametrize("num_beams", [3, 5])
def test_beams(looping, name, num_beams):
    _, tokenizer, prompts = looping
    remedy = build(name, tokenizer)
    remedy.pad_token_id = PAD
    options = {"num_beams": num_beams, "num_return_sequences": 2, "max_new_tokens": 40}
    together = run(looping, prompts, remedy, **options)
    alone = [row for p in prompts for row in run(looping, [p], remedy, **options)]
    end = tokenizer.eos_token_id
    assert [cut(row, end) for row in together] == [cut(row, end) for row in alone]


@every_remedy
def test_a_beam_is_treated_like_a_row_that_was_always_alone(looping, name):
    _, tokenizer, prompts = looping
    remedy = build(name, tokenizer)
    steps = {}  # ids so far -> logits before and after the remedy

    def record(ids, scores):
        after = remedy(ids, scores)
        for row, *pair in zip(ids.tolist(), scores, after, strict=True):
            steps[tuple(row)] = pair
        return after

    run(looping, prompts[:1], record, num_beams=4, max_new_tokens=30)
    start = tuple(prompts[0])
    longest = max(map(len, steps))
    assert len(steps) > 2 * (longest - len(start)), "beams differ"
    for beam in [ids for ids in steps if len(ids) == longest]:
        alone = build(name, tokenizer)
        for end in range(len(start), longest + 1):
            before, after = steps[beam[:end]]
            assert torch.equal(alone(torch.tensor([beam[:end]]), before[None])[0], after)


@every_remedy
def test_streaming_shows_the_same_tokens(looping, name):
    _, tokenizer, prompts = looping

    class Tokens(BaseStreamer):
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Tokens()
    shown = run(looping, prompts[:1], build(name, tokenizer), streamer=streamer)
    assert streamer.ended
    assert streamer.ids == prompts[0] + shown[0]
    assert shown == run(looping, prompts[:1], build(name, tokenizer))


@every_remedy
def test_seeded_sampling_is_repeatable_on_one_instance(looping, name):
    _, tokenizer, prompts = looping
    remedy = build(name, tokenizer)
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(run(looping, prompts[:1], remedy, do_sample=True, num_return_sequences=3))
    assert texts[0] == texts[1]
    assert len({tuple(row) for row in texts[0]}) == 3


@every_remedy
def test_speculative_steps_are_taken_back(looping, name):
    if name == "ditto-cap":
        pytest.skip("recorded probabilities are lost when tokens are taken back")
    _, tokenizer, prompts = looping
    for prompt in prompts[:3]:
        plain = run(looping, [prompt], build(name, tokenizer))
        options = {"prompt_lookup_num_tokens": 4}
        assert run(looping, [prompt], build(name, tokenizer), **options) == plain
