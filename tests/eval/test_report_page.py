"""One page of everything: in a real browser, with numbers that are those of the files."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from results import RESULT
from results_of_all_kinds import (
    BENCH,
    FINETUNED,
    METRICS,
    RECALL,
    REPETITION,
    STUDENT,
    TEACHER,
    write,
)

from linearize.errors import InputError, UsageError
from linearize.eval import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Read(HTMLParser):
    """Tables as lists of rows of cells, headings, and CSV files behind links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[list[str]] = []
        self.headings: list[str] = []
        self.files: dict[str, list[dict[str, str]]] = {}
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self._into = self.cells[-1]
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
            self._into = self.headings
        if tag == "a" and "download" in attrs:
            head, text = attrs["href"].split(",", 1)
            assert head == "data:text/csv;charset=utf-8"
            assert attrs["download"] not in self.files
            self.files[attrs["download"]] = list(csv.DictReader(io.StringIO(unquote(text))))

    def handle_endtag(self, tag):
        if tag in ("td", "th", "h1", "h2", "h3"):
            self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into[-1] += data


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    return report.write(*write(folder), out=folder / "all.html")


@pytest.fixture(scope="module")
def read(everything) -> Read:
    return Read(everything.read_text())


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, list[str], list[str]]:
    """(DOM, console messages, addresses requested) of a page in a headless browser."""
    name = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if name is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    log = folder / "net.json"
    quiet = ("--disable-background-networking", "--disable-component-update", "--no-first-run")
    flags = (
        *flags,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        *quiet,
    )
    ended = subprocess.run(
        [
            name,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--log-net-log={log}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    events = [e.get("params", {}) for e in json.loads(log.read_text())["events"]]
    # What the browser itself asks for (updates, the time) has no origin.
    asked = {e["url"] for e in events if e.get("initiator", "not an origin") != "not an origin"}
    return ended.stdout, console, [url for url in asked if url.startswith(("http", "ws", "ftp"))]


def test_a_browser_finds_no_error_and_fetches_nothing(everything, tmp_path):
    dom, console, asked = browse(everything, tmp_path)
    assert "</html>" in dom
    assert dom.count("<svg") == len(Read(dom).files) > 8
    assert console == []
    assert asked == []


def test_the_browser_would_have_told(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('no')</script><img src='http://example.invalid/a.png'>")
    _, console, asked = browse(page, tmp_path)
    assert any("no" in line for line in console)
    assert "http://example.invalid/a.png" in asked


def test_nothing_is_wider_than_a_phone(everything, tmp_path):
    """Wide tables scroll in their own box; the page does not."""
    page = tmp_path / "phone.html"
    probe = (
        "<script>onload = () => document.title ="
        "document.documentElement.scrollWidth <= innerWidth ? 'fits' : 'too wide'</script>"
    )
    page.write_text(everything.read_text().replace("</body>", f"{probe}</body>"))
    dom, *_ = browse(page, tmp_path, "--window-size=500,900")  # no window is narrower
    assert "<title>fits</title>" in dom


def rows_of(read: Read, first: str) -> list[list[str]]:
    return [row for row in read.cells if row and row[0] == first]


def test_every_kind_has_its_section(read):
    found = "\n".join(read.headings)
    for part in ("linearized: conversion", "fine-tuned: tuned", "Tasks", "local_piqa", "Samples",
                 "Recall over length", "Repetition", "Bench prefill", "Recipe"):  # fmt: skip
        assert part in found


def test_numbers_in_tables_are_those_of_the_files(read):
    teacher = TEACHER["results"]["local_piqa"]["acc,none"]
    student = STUDENT["results"]["local_piqa"]["acc,none"]
    own, other = "small-llama (teacher)", "student (student-eval)"
    assert [f"{teacher:.4f} ± 0.0112", ""] in [row[1:] for row in rows_of(read, own)]
    change = f"{student - teacher:+.4f} ± {0.0112 * 2**0.5:.4f}"
    assert [f"{student:.4f} ± 0.0112", change] in [row[1:] for row in rows_of(read, other)]
    asked_less = rows_of(read, "student (longer-eval), length 1,024")
    assert [row[2] for row in asked_less] == [""], "no difference to another length's score"
    for name in ("teacher", "Liger"):
        points = [r for r in RECALL["rows"] if r["name"] == name]
        cells = [f"{100 * r['accuracy']:.1f} ± {100 * r['stderr']:.1f}" for r in points]
        mean = f"{100 * RECALL['means'][name]['pairs']:.1f}"
        assert [name, *cells, mean] in read.cells
    before, after = (FINETUNED["measured"][when]["rep-4"] for when in ("before", "after"))
    change = f"{100 * (after / before - 1):+.1f} %"
    assert ["rep-4", f"{before:.4f}", f"{after:.4f}", change] in read.cells
    ways = REPETITION["groups"][0]["ways"]
    assert ["rep-4", *(f"{way['rep-4']:.4f}" for way in ways.values())] in read.cells
    assert ["egp", "0.1000", ""] in read.cells
    for record in BENCH["records"]:
        for model, seconds in record["seconds"].items():
            assert [f"{record['length']:,}", model, f"{1e3 * seconds:.1f}"] in [
                row[:3] for row in read.cells
            ]
    loss = RESULT["losses"]["student"]
    assert f"{loss:.4f}" in rows_of(read, "student: the converted model")[0]


def test_data_behind_plots_are_those_of_the_files(read):
    drawn = read.files["conversion-training.csv"]
    assert [(float(r["tokens"]), float(r["loss"])) for r in drawn] == [
        (m["tokens"], m["loss"]) for m in METRICS
    ]
    drawn = read.files["recall-pairs.csv"]
    assert [(r["line"], *map(float, list(r.values())[1:])) for r in drawn] == [
        (r["name"], r["tokens"], 100 * r["accuracy"], 100 * r["stderr"]) for r in RECALL["rows"]
    ]
    drawn = read.files["prefill-memory-beyond-the-weights.csv"]
    assert {(r["line"], int(r["length"]), int(r["bytes"])) for r in drawn} == {
        (model, record["length"], size)
        for record in BENCH["records"]
        for model, size in record["peak_bytes"].items()
    }
    drawn = read.files["local_passkey-contains-length.csv"]
    assert [int(r["length"]) for r in drawn] == [512, 512, 1024]
    held = read.files["conversion-held-out.csv"]
    assert [float(r["loss"]) for r in held] == [RESULT["losses"][k] for k in ("before", "student")]


def test_several_need_a_file_and_one_has_its_place(tmp_path):
    paths = write(tmp_path)
    with pytest.raises(UsageError, match="needs a file to be written to: --out FILE"):
        report.write(*paths)
    assert report.write(tmp_path / "recall") == tmp_path / "recall" / "report.html"
    assert report.write(tmp_path / "prefill.json") == tmp_path / "prefill.html"


def test_a_damaged_file_is_one_line_that_names_it(tmp_path):
    paths = write(tmp_path)
    for path, drop in zip(paths, ("losses", "measured", "results", "results", "configs", "rows",
                                  "groups", "records"), strict=True):  # fmt: skip
        file = path if path.is_file() else next(path.glob("result*.json"))
        whole = file.read_text()
        values = json.loads(whole)
        for broken in ("{", "[]", '"text"', json.dumps({**values, drop: 3}), whole[:-20]):
            file.write_text(broken)
            with pytest.raises(InputError) as caught:
                report.write(path, out=tmp_path / "report.html")
            assert str(file) in str(caught.value)
            assert "\n" not in str(caught.value)
        file.write_text(whole)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(InputError, match="there is no"):
        report.write(tmp_path / "nowhere")
