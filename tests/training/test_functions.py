import ast
from itertools import islice
from pathlib import Path

import pytest

from linearize.errors import InputError
from linearize.recipe import DataSettings
from linearize.training import corpora
from linearize.training.data import documents, held_out, trained_on
from linearize.training.functions import functions

SOURCE = '''import os

def first(x):
    def inner():
        return x

    return inner


class A:
    size = 1

    @property
    def second(self):
        """Words.

        More words.
        """
        return self.size

    async def third(self):
        pass; x = 1

    def left(self):
        return """
out of line"""

if os:
    try:
        def fourth(): return 4
    except E:
        def fifth():
            ...

print(first)
'''


def test_functions_stand_alone_in_order_and_end_where_they_end() -> None:
    found = list(functions(SOURCE))
    names = [ast.parse(text).body[0].name for text in found]
    assert names == ["first", "second", "third", "fourth", "fifth"]
    assert found[0] == "def first(x):\n    def inner():\n        return x\n\n    return inner"
    assert found[1].startswith('@property\ndef second(self):\n    """Words.\n\n    More words.\n')
    assert found[2].endswith("    pass; x = 1")
    assert found[3] == "def fourth(): return 4"


@pytest.mark.parametrize("text", ["", "x = 1", "print 'two'", "def f(:", "a\0b", "(" * 3000])
def test_text_without_functions_has_none(text: str) -> None:
    assert list(functions(text)) == []


def test_every_function_of_the_library_is_python_again() -> None:
    modules = (module for _, module in islice(corpora.stdlib(), 60))
    found = [text for module in modules for text in functions(module)]
    assert len(found) > 500
    for text in found:
        (only,) = ast.parse(text).body
        assert isinstance(only, ast.FunctionDef | ast.AsyncFunctionDef)


def test_what_is_trained_on_comes_in_pieces_and_what_is_held_out_stays_whole(
    tmp_path: Path,
) -> None:
    for number in range(4):
        (tmp_path / f"{number}.py").write_text(f"def f(): return {number}\n\nx = 1\n\ndef g(): 0\n")
    whole = DataSettings(source=str(tmp_path), eval_fraction=0.5)
    cut = whole.model_copy(update={"pieces": "functions"})
    assert list(held_out(cut)) == list(held_out(whole)) == list(documents(whole))[1::2]
    assert list(trained_on(cut)) == [
        *("def f(): return 0", "def g(): 0"),
        *("def f(): return 2", "def g(): 0"),
    ]


def test_a_source_without_functions_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(InputError, match=r"no function of Python in .*leave out data\.pieces"):
        list(trained_on(DataSettings(source=str(tmp_path), pieces="functions")))
