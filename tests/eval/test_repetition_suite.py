"""The repetition suite: what it reports is what was generated, and nothing is generated twice."""

from __future__ import annotations

import json

import pytest
import torch

from linearize import pretrained
from linearize.decoding import generate
from linearize.errors import InputError, OutputError, UsageError
from linearize.eval.metrics import repetition as metrics
from linearize.eval.suites import SUITES, plots, prompts
from linearize.eval.suites import repetition as suite
from linearize.eval.suites.prompts import Group
from linearize.eval.suites.store import FILE

CODE = [
    "def f(a):\n    if a == 1:\n        return 2\n",
    "import os\nimport re\n",
    "class A:\n    def __init__(self):\n",
]
GROUPS = [
    Group("first", "python", CODE[:2]),
    Group("second", "python", CODE[2:]),
    Group("words", None, ["The sun rose. The sun set and then", "Every day"]),
]
WAYS = {"greedy": {}, "rpg": {"remedies": {"rpg": {"min_copies": 2}}}}
ABOUT = {"model": "embedded", "dtype": "float32"}


@pytest.fixture(scope="module")
def model():
    return pretrained.load(pretrained.locate("embedded"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.tokenizer(pretrained.locate("embedded"))


@pytest.fixture
def measure(model, tokenizer, tmp_path):
    def run(groups=GROUPS, ways=WAYS, out=tmp_path / "out", **options):
        settings = {"max_new_tokens": 40, "batch_size": 2, "about": ABOUT, **options}
        return suite.run(model, tokenizer, groups, ways, out, **settings)

    return run


def records(path):
    return [json.loads(line) for line in (path / FILE).read_text().splitlines()][1:]


def test_figures_are_those_of_the_continuations(measure, model, tokenizer, tmp_path):
    found = {group["name"]: group for group in measure()["groups"]}
    assert list(found) == ["first", "second", "words", "all python"]
    made = {(r["way"], r["prompt"]): r for r in records(tmp_path / "out")}
    assert len(made) == 5 * 2
    alone = generate(model, tokenizer, CODE[2:], max_new_tokens=40)[0]
    assert made["greedy", CODE[2]]["text"] == alone.text
    told = {"rpg": {"min_copies": 2, "language": "python"}}
    alone = generate(model, tokenizer, CODE[2:], remedies=told, max_new_tokens=40)[0]
    assert made["rpg", CODE[2]]["text"] == alone.text
    for way in WAYS:
        texts = [made[way, prompt]["text"] for prompt in CODE]
        ids = [made[way, prompt]["ids"] for prompt in CODE]
        figures = found["all python"]["ways"][way]
        same = metrics.repetition(texts, language="python", prompts=CODE, tokens=ids)
        assert {name: figures[name] for name in same} == same
        assert figures["tokens"] == sum(map(len, ids)) / 3
        starts = list(map(len, CODE))
        whole = [a + b for a, b in zip(CODE, texts, strict=True)]
        pooled = metrics.tr_s(whole, level="terminal", starts=starts, pooled=True)
        assert figures["tr-s terminal pooled"] == pooled
        assert figures["egp"] == sum(made[way, p]["finish_reason"] == "eos" for p in CODE) / 3
    assert "compile" not in found["words"]["ways"]["greedy"]
    curve = found["first"]["over_length"]
    assert curve["edges"] == [0, 32, 40]
    assert all(len(values) == 2 for values in curve["rep-4"].values())


def test_self_reinforcement_is_measured_on_lines_and_sentences(measure, model, tokenizer):
    found = measure()["groups"]
    line = tokenizer("def f(a):\n", add_special_tokens=False).input_ids
    second = tokenizer("import os\n", add_special_tokens=False).input_ids
    units = [ids for ids in (line, second) if len(ids) >= 4]
    same = metrics.measure_self_reinforcement(model, tokenizer, units, 16)
    assert found[0]["self_reinforcement"]["tp"] == pytest.approx(same.tp)
    assert len(found[2]["self_reinforcement"]["wr"]) == 16
    tiny = [Group("tiny", "python", ["x"])]
    assert measure(tiny, {"greedy": {}})["groups"][0]["self_reinforcement"] is None


def test_a_run_that_was_ended_goes_on(measure, tmp_path):
    whole = measure(out=tmp_path / "whole")

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(on_progress=stop)
    file = tmp_path / "out" / FILE
    assert len(records(tmp_path / "out")) == 2, "one batch of one way"
    file.write_bytes(file.read_bytes() + b'{"way": "gre')  # killed in the middle of a line
    reached = []
    found = measure(on_progress=lambda *n: reached.append(n))
    assert reached[0] == (2, 10)
    assert reached[-1] == (10, 10)
    for done, same in zip(found["groups"], whole["groups"], strict=True):
        for way in WAYS:
            a, b = ({**g["ways"][way], "tokens/s": 0} for g in (done, same))
            assert a == b


def test_what_is_there_is_not_made_again(measure, tmp_path):
    measure(ways={"greedy": {}})
    file = tmp_path / "out" / FILE
    before = file.read_bytes()
    measure(ways={"greedy": {}})
    assert file.read_bytes() == before
    measure(ways={"greedy": {}, "dry": {"remedies": {"dry": {}}}})
    assert file.read_bytes().startswith(before)
    assert [r["way"] for r in records(tmp_path / "out")].count("greedy") == 5
    with pytest.raises(UsageError, match="'dry' with other options"):
        measure(ways={"dry": {"remedies": {"dry": {"base": 2}}}})
    with pytest.raises(UsageError, match=r"other settings \(max_new_tokens\)"):
        measure(ways={"greedy": {}}, max_new_tokens=8)
    measure(ways={"greedy": {}}, max_new_tokens=8, overwrite=True)
    assert {len(r["ids"]) for r in records(tmp_path / "out")} == {8}


def test_nothing_else_is_touched(measure, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        measure(overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_text("mine\n")
    with pytest.raises(OutputError, match="not written by this suite"):
        measure(out=tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        measure(out=tmp_path / "file")


def test_prompts_that_do_not_fit_are_left_out_and_counted(measure):
    long = "x = 1\n" * 600
    found = measure([Group("g", "python", [CODE[0], long])], {"greedy": {}})["groups"][0]
    assert (found["prompts"], found["left_out"]) == (1, 1)
    with pytest.raises(InputError, match="no prompt leaves room"):
        measure([Group("g", "python", [long])])
    with pytest.raises(UsageError, match="nothing to compare"):
        measure(ways={})


def test_changed_counts_only_where_greedy_does_not_repeat(measure):
    found = measure(
        [Group("calm", None, ["The sun rose. The sun set and then", "Every day", "a b c d"])],
        {**WAYS, "other": {"sampler": "sample", "temperature": 3.0}},
        max_new_tokens=6,
    )["groups"][0]
    assert found["calm"] == 3, "six tokens hold no loop"
    assert {way: f["changed"] for way, f in found["ways"].items()} == {
        "greedy": 0,
        "rpg": 0,
        "other": 1,
    }


def test_calm_is_decided_by_statements_and_ngrams():
    def record(text):
        return {"text": text, "ids": list(text.encode())}

    different = "import os\nx = f(3)\nwhile x:\n    x.go()\n"
    assert suite.is_calm("", record(different), "python")
    # Alike but for names: 4-grams of characters differ enough, the structure does not.
    alike = "alpha = bcd(1)\nzulu = kwq(2)\n"
    assert not suite.is_calm("", record(alike), "python")
    assert suite.is_calm("", record(alike), None)
    assert not suite.is_calm("", record("on and on and on and on and on"), None)


def test_broken_logits_are_counted(model, tokenizer, tmp_path):
    broken = pretrained.load(pretrained.locate("embedded"), dtype=torch.float32)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    found = suite.run(broken, tokenizer, GROUPS[:1], {"greedy": {}}, tmp_path / "out", about=ABOUT)
    assert found["broken"] == 2
    assert found["groups"][0]["ways"]["greedy"]["tokens"] == 0


def test_the_plots_are_images_of_every_group(measure, tmp_path):
    found = measure()
    files = plots.draw(found["groups"], tmp_path)
    assert [f.name for f in files] == ["self_reinforcement.png", "repetition_over_length.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    without = [{**group, "self_reinforcement": None} for group in found["groups"]]
    assert [f.name for f in plots.draw(without, tmp_path)] == ["repetition_over_length.png"]


def test_the_suite_has_a_name():
    assert {"repetition": suite.run} == SUITES


def test_prompts_that_ship_are_code_and_prose():
    code, prose = prompts.read()
    assert (code.language, prose.language) == ("python", None)
    assert min(len(code.prompts), len(prose.prompts)) >= 16
    assert len({*code.prompts, *prose.prompts}) == len(code.prompts) + len(prose.prompts)
    assert [len(g.prompts) for g in prompts.read(limit=3)] == [3, 3]


def test_prompts_from_files(tmp_path):
    file, text = tmp_path / "some.jsonl", tmp_path / "plain.txt"
    file.write_text('{"q": "a"}\n\n{"q": "b", "language": "go"}\n{"q": "c", "language": "prose"}\n')
    text.write_text("one\n\ntwo\n")
    assert prompts.read([file, text], field="q", language="rust") == [
        Group("some rust", "rust", ["a"]),
        Group("some go", "go", ["b"]),
        Group("some prose", None, ["c"]),
        Group("plain", None, ["one", "two"]),
    ]
    assert prompts.read([file], field="q", language="prose")[0] == Group(
        "some prose", None, ["a", "c"]
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "a"}\n{broken\n', "line 2: not JSON"),
        ('{"prompt": 3}\n', "line 1: no object with text under 'prompt'"),
        ('{"prompt": "a", "language": "pyton"}\n', "did you mean 'python'"),
        ("\n\n", "holds no prompts"),
        (b"\xff", "not UTF-8"),
        (None, "cannot read"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, content, says):
    file = tmp_path / "some.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((InputError, UsageError), match=says):
        prompts.read([file])


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.txt").write_text("x")
    with pytest.raises(UsageError, match="two prompt files"):
        prompts.read([tmp_path / "a" / "p.txt", tmp_path / "b" / "p.txt"])
    with pytest.raises(UsageError, match="limit=0"):
        prompts.read(limit=0)
