import json
import sys
from pathlib import Path

import pytest

from linearize.errors import InputError, UsageError
from linearize.recipe import DataSettings
from linearize.training import corpora
from linearize.training.data import documents, split


def read(source: Path | str, **settings: object) -> list[str]:
    return list(documents(DataSettings(source=str(source), **settings)))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_txt_is_split_at_separator_lines_only(tmp_path: Path) -> None:
    text = "\nOne <|endoftext|> two\nthree\n<|endoftext|>\r\n \n<|endoftext|>\n\nfour\n\n  five"
    path = write(tmp_path / "a.txt", text)
    assert read(path) == ["One <|endoftext|> two\nthree", "four\n\n  five"]
    assert read(path, separator="") == [text.strip()]
    assert read(path, separator="four") == [text[: text.index("four")].strip("\n"), "  five"]


def test_txt_keeps_other_line_ends_and_drops_a_byte_order_mark(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\r\ntwo\x0bthree\xe2\x80\xa8four"
    assert read(write(tmp_path / "a.txt", content)) == ["one\r\ntwo\x0bthree\u2028four"]


def test_real_stories(shared: Path) -> None:
    found = documents(DataSettings(source=str(shared / "data/tinystories/valid.txt")))
    stories = [next(found) for _ in range(20)]
    assert all("<|endoftext|>" not in story and len(story) > 50 for story in stories)


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "one", "body": "eins"}, {"text": "two\nlines", "body": "zwei"}]
    path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    assert read(path) == ["one", "two\nlines"]
    assert read(path, field="body") == ["eins", "zwei"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"story": ["one", "", "two"], "id": [1, 2, 3]}), path)
    assert read(path, field="story") == ["one", "two"]
    with pytest.raises(UsageError, match=r"no field 'stori'; did you mean 'story'"):
        read(path, field="stori")
    with pytest.raises(InputError, match="row 1: field 'id' holds int, not text"):
        read(path, field="id")
    with pytest.raises(InputError, match="cannot read"):
        read(write(tmp_path / "broken.parquet", b"PAR1 but no more"))


def test_directories_and_globs_are_read_in_order_of_path(tmp_path: Path) -> None:
    write(tmp_path / "b/z.txt", "third")
    write(tmp_path / "b/a.jsonl", '{"text": "second"}')
    write(tmp_path / "a.py", "first = 1\n")
    write(tmp_path / "b/ignored.md", "not text to read")
    assert read(tmp_path) == ["first = 1", "second", "third"]
    assert read(tmp_path / "**/*.txt") == ["third"]
    assert read(tmp_path / "?") == ["second", "third"]
    assert read(tmp_path / "a.py") == ["first = 1"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text"\n', InputError, r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', InputError, r"line 2: not a JSON object"),
        ("a.jsonl", '\n{"txt": "x"}\n', UsageError, r"line 2: there is no field 'text'.*'txt'"),
        ("a.jsonl", '{"text": 7}\n', InputError, r"line 1: field 'text' holds int"),
        ("a.txt", "ok \xe9".encode("latin-1"), InputError, r"not UTF-8 text .*0xe9.*iconv"),
        ("a.txt", "", InputError, r"no text in .*a\.txt"),
        ("a.txt", " \n<|endoftext|>\n\n", InputError, r"no text in .*a\.txt"),
        ("a.csv", "x", InputError, r"must end in one of \.txt, \.jsonl, \.parquet, \.py"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        read(write(tmp_path / name, content))


def test_missing_and_unreadable(tmp_path: Path) -> None:
    for source in (tmp_path / "none.txt", tmp_path / "none", "a/b/c", "./none"):
        with pytest.raises(InputError, match=r"there is no file .*none|there is no file a/b/c"):
            read(source)
    with pytest.raises(InputError, match="matches no file with text"):
        read(tmp_path)
    with pytest.raises(InputError, match="matches no file with text"):
        read(tmp_path / "*.txt")
    with pytest.raises(UsageError, match=r"give data\.source"):
        list(documents(DataSettings()))


@pytest.mark.parametrize(
    ("module", "name", "remedy"),
    [
        ("datasets", "someone/no-such-set", r'pip install "linearize\[data\]"'),
        ("pyarrow", "a.parquet", r'pip install "linearize\[parquet\]"'),
    ],
)
def test_absent_libraries_name_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, name: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", b"")
    with pytest.raises(InputError, match=remedy):
        read(name)


def test_unreachable_hub_suggests_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot read the hub data set .* give a local file"):
        read("someone/no-such-set")


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "b.txt", b"\xff")
    assert next(documents(DataSettings(source=str(tmp_path)))) == "first"


def test_every_nth_document_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n<|endoftext|>\n".join(map(str, range(10))))

    def held_out(**settings: object) -> list[str]:
        flagged = split(DataSettings(source=str(path), **settings))
        return [text for flag, text in flagged if flag]

    assert held_out(eval_fraction=0.25) == ["3", "7"]
    assert held_out(eval_fraction=0.9) == ["1", "3", "5", "7", "9"]
    assert held_out(eval_fraction=0.01) == []
    assert held_out(eval_fraction=0.25, eval_source="stdlib") == []


def test_stdlib_is_source_code_without_tests_and_tables() -> None:
    modules = dict(corpora.stdlib())
    assert {"json/decoder.py", "queue.py", "asyncio/tasks.py"} <= modules.keys()
    assert "def dumps(" in modules["json/__init__.py"]
    parts = {part for name in modules for part in name.split("/")}
    assert not parts & {"test", "tests", "site-packages", "encodings", "idlelib"}
    assert 3e6 < sum(map(len, modules.values())) < 3e7
    assert list(modules) == [name for name, _ in corpora.stdlib()]
    assert list(modules) != sorted(modules)  # any prefix is a fair sample
    assert next(documents(DataSettings(source="stdlib"))).strip() in next(iter(modules.values()))


def test_stdlib_without_sources_is_an_input_error(tmp_path: Path) -> None:
    write(tmp_path / "test/test_x.py", "pass")
    with pytest.raises(InputError, match="give text of your own"):
        next(corpora.stdlib(tmp_path))


def test_digest_depends_on_text_order_and_cuts() -> None:
    digests = {
        corpora.digest(iter(texts)) for texts in (["ab", "c"], ["c", "ab"], ["a", "bc"], ["abc"])
    }
    assert len(digests) == 4
    assert corpora.digest(iter(["ab", "c"])) in digests
