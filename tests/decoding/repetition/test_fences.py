"""Which part of a text is code."""

import pytest

from linearize.decoding.repetition.fences import Fences

pytest.importorskip("tree_sitter_python")
CODE = b"def f(x):\n    return x\n"


def code(language, prompt, *parts, count_all=True):
    """The text of the source after all parts, None in prose."""
    fences = Fences(language, prompt)
    source = fences.source(count_all)
    for part in parts:
        if fences.append(part):
            source = fences.source(count_all)
        elif source is not None:
            source.append(part)
    return source and (source.language.name, bytes(source.text))


def test_a_named_language_takes_everything():
    assert code("python", CODE, b"```", b"\nx") == ("python", CODE + b"```\nx")


@pytest.mark.parametrize("size", [1, 3, 100])
def test_only_what_stands_between_fences_is_code(size):
    text = b"Look:\n```python\n" + CODE + b"```\nand\n~~~ py\nx = 1\n"
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    assert code("auto", b"Hi. ", *parts) == ("python", b"x = 1\n")
    first = text[: text.index(b"```\nand")]
    parts = [first[at : at + size] for at in range(0, len(first), size)]
    assert code("auto", b"Hi. ", *parts) == ("python", CODE)
    assert code("auto", b"Hi. ", *parts, b"```\n", b"and") is None


def test_without_a_fence_the_prompt_is_judged():
    assert code("auto", CODE, b"x") == ("python", CODE + b"x")
    pytest.importorskip("tree_sitter_go")
    go = b"package main\n\nfunc f() {\n\tx := 1\n"
    assert code("auto", go) == ("go", go)


@pytest.mark.parametrize(
    "prompt", [b"", b"Tell me a story. ", b"```brainfuck\n++", b"```\nx = 1\n"]
)
def test_prose_and_unknown_languages_are_no_code(prompt):
    assert code("auto", prompt, b"x\nx\nx\n") is None


def test_copies_in_the_prompt_count_only_if_asked():
    for prompt in (b"x = 1\n" * 4, b"Look:\n```py\n" + b"x = 1\n" * 4):
        language = "auto" if b"`" in prompt else "python"
        for count, wanted in ((True, True), (False, False)):
            source = Fences(language, prompt).source(count)
            assert bool(source.runs(min_copies=3)) is wanted


def test_a_copy_goes_its_own_way():
    fences = Fences("auto", b"```py\nx\n")
    copy = fences.fork()
    assert copy.append(b"```\n")
    assert copy.source(True) is None
    assert bytes(fences.source(True).text) == b"x\n"
