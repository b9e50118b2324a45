"""Scores of paths: likelihoods by hand, padding, broken numbers, and the file they are kept in."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import linearize
from linearize.decoding.layer_path_search import Search
from linearize.decoding.layer_paths import layer_path, parse
from linearize.errors import InputError, OutputError, UsageError
from linearize.eval.path_evaluations import FILE, Evaluations
from linearize.eval.path_search import for_each_item, for_task
from linearize.eval.path_tasks import Choices, Item, Text

ITEMS = [
    Item("Once upon a", ["time there was a girl", "banana"], 0),
    Item("Lily went to the park to", ["algebra", "play with her friends", "red"], 1),
    Item("She said, thank", ["you", "window is very"], 0),
]


@pytest.fixture(scope="module", params=["pretrained", "converted"])
def pair(request, shared):
    path = shared / "data" / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    if request.param == "converted":
        linearize.apply(model, linearize.LigerSpec(window=4, mix="fixed", mix_weight=0.1))
    return model, AutoTokenizer.from_pretrained(path)


def likelihood(model, tokenizer, query, choice):
    before = len(tokenizer(query).input_ids)
    ids = tokenizer(f"{query} {choice}", return_tensors="pt").input_ids
    with torch.no_grad():
        steps = model(ids).logits.log_softmax(-1)[0, :-1]
    return sum(steps[i - 1, ids[0, i]].item() for i in range(before, ids.shape[1]))


@pytest.mark.parametrize("per_character", [False, True])
def test_the_answer_is_the_likeliest_choice(pair, per_character):
    task = Choices(ITEMS, *pair, per_character=per_character)
    expected = []
    for item in ITEMS:
        found = [
            likelihood(*pair, item.query, c) / (len(c) if per_character else 1)
            for c in item.choices
        ]
        expected.append(float(found.index(max(found)) == item.gold))
    assert task.score(pair[0], range(3), batch_size=16) == expected
    assert task.score(pair[0], range(3), batch_size=1) == expected
    assert task.score(pair[0], [2, 0], batch_size=2) == [expected[2], expected[0]]


def test_loss_of_text(pair):
    model, tokenizer = pair
    stories = ["\nOnce upon a time there was a dog.\n", "", "The dog ran."]
    content = "<|endoftext|>".join(stories * 60)
    task = Text(content, model, tokenizer)
    assert task.block == 512
    ids = [*tokenizer("Once upon a time there was a dog.").input_ids]
    ids += tokenizer("The dog ran.").input_ids
    ids = torch.tensor([(ids * 60)[:512]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert task.score(model, [0, 1], 2)[0] == pytest.approx(expected, abs=1e-4)
    assert task.summary([1.0, 3.0]) == pytest.approx(math.exp(2))
    assert task.reward([1.0, 3.0], [2.0, 3.0]) == pytest.approx(math.exp(0.5))
    short = Text("Once upon", model, tokenizer)
    assert len(short) == 1
    with pytest.raises(InputError, match="tokens; a loss needs two"):
        Text("", model, tokenizer)


def test_broken_logits_are_wrong_and_infinitely_bad(shared):
    path = shared / "data" / "models" / "stories260K"
    model, words = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(math.nan)
    assert Choices(ITEMS, model, words).score(model, range(3), 4) == [0.0, 0.0, 0.0]
    text = Text("Once upon a time", model, words)
    worst = text.score(model, [0], 4)
    assert worst == [math.inf]
    assert text.summary(worst) == math.inf
    with layer_path(model, "0-1,3-4"):
        healthy = text.score(model, [0], 4)
    assert math.isfinite(healthy[0])
    assert text.reward(worst, healthy) == 0.0


def test_a_search_around_a_broken_layer_avoids_it(shared, tmp_path):
    path = shared / "data" / "models" / "stories260K"
    model, words = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.fill_(math.nan)
    text = Text("Once upon a time there was a little girl named Lily.", model, words)
    found = for_task(Evaluations(tmp_path, {}, model, text, 4), 5, Search(simulations=40), [0], [])
    assert found["original"]["search"] is None
    assert 2 not in parse(found["best"]["path"], 5)
    assert math.isfinite(found["best"]["search"])
    json.loads(json.dumps(found), parse_constant=pytest.fail)
    records = (tmp_path / FILE).read_text().splitlines()
    assert any(json.loads(r, parse_constant=pytest.fail).get("scores") == [None] for r in records)
    again = Evaluations(tmp_path, {}, model, text, 4)
    assert again(range(5), [0]) == [math.inf]
    assert again.made == 0


def test_a_shortest_right_path_for_every_question(pair, tmp_path):
    task = Choices(ITEMS, *pair)
    evaluations = Evaluations(tmp_path, {}, pair[0], task, 8)
    found = for_each_item(evaluations, 5, Search(simulations=20), [0, 1, 2])
    for question in found["questions"]:
        if question["path"] is not None:
            with layer_path(pair[0], question["path"]):
                assert task.score(pair[0], [question["item"]], 8) == [1.0]
    with pytest.raises(UsageError, match="no right answer"):
        for_each_item(
            Evaluations(tmp_path, {}, pair[0], Text("Once upon", *pair), 8), 5, Search(), [0]
        )


DAMAGED = [
    "",
    "[]",
    "no json",
    '{}\n{"path": "0"}',
    '{}\n{"path": "0", "items": [1], "scores": []}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(5))
def test_a_damaged_file_is_refused(pair, tmp_path, content):
    (tmp_path / FILE).write_text(content + "\n")
    with pytest.raises(OutputError, match="damaged"):
        Evaluations(tmp_path, {"task": "x"}, pair[0], Choices(ITEMS, *pair), 8)
