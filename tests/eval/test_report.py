"""The report: one self-contained file, every number, safe text, and what is absent is said."""

import copy
import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from results import RESULT

from linearize.errors import InputError
from linearize.eval import report

METRICS = [{"step": i, "tokens": 4096 * i, "loss": 1.4 - i / 500} for i in range(1, 60)]
METRICS += [{"step": 30, "tokens": 4096 * 30, "eval_loss": 1.34}]
SAMPLES = [{"prompt": "Once <b>upon</b>", "teacher": "a & b\n  c", "student": "</pre><script>"}]


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, METRICS)))
    (tmp_path / "samples.json").write_text(json.dumps(SAMPLES))
    return tmp_path


def render(result):
    return report.render([report.Source("conversion", "run", Path("result.json"), result)])


class Page(HTMLParser):
    """Open tags, what is referred to from outside, and the ids."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.outside, self.ids, self.refers = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in {"meta"}:
            self.open.append(tag)
        for name, value in attrs:
            self._note(name, value or "")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self._note(name, value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _note(self, name, value):
        if name == "id":
            self.ids.append(value)
        if name in {"src", "href", "xlink:href"}:
            (self.refers if value.startswith("#") else self.outside).append(value.lstrip("#"))


def test_one_file_that_fetches_nothing_and_needs_no_script(run_dir):
    path = report.write(run_dir)
    text = path.read_text()
    page = Page(text)
    assert path == run_dir / "report.html"
    assert page.open == []
    assert page.tags.count("svg") == 5
    assert all(target.startswith("data:text/csv") for target in page.outside)
    assert len(page.outside) == 5, "behind every plot are its numbers"
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"https?://|@import", text)
    assert len(page.ids) == len(set(page.ids)), "drawings share one page and must not share ids"
    assert set(page.refers) <= set(page.ids)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#0101\d\d", text), "every stand-in colour became a variable"


def test_every_number_is_there(run_dir):
    text = report.write(run_dir).read_text()
    for number in ("1.3000", "1.3050", "1.3600", "1.3700", "1.0050", "700,000", "13,000",
                   "273,032", "25.3 kB", "5.1 kB", "20.2 kB", ">79<", "3e-06", "2.13.0",
                   RESULT["base"]["hash"]):  # fmt: skip
        assert number in text, number


def test_the_same_input_gives_the_same_bytes(run_dir):
    first = report.write(run_dir).read_bytes()
    assert report.write(run_dir).read_bytes() == first


def test_samples_are_text_not_markup(run_dir):
    text = report.write(run_dir).read_text()
    for sample in SAMPLES[0].values():
        assert f"<pre>{html.escape(sample)}</pre>" in text


def test_what_is_absent_is_said(run_dir):
    whole = report.write(run_dir).read_text()
    assert "is absent" not in whole
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "samples.json").unlink()
    text = report.write(run_dir).read_text()
    assert "metrics.jsonl is absent" in text
    assert "samples.json is absent" in text


def test_without_matplotlib_there_are_tables_and_the_command(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    text = report.write(run_dir).read_text()
    assert "<svg" not in text
    assert report.INSTALL in html.unescape(text)
    assert "1.3050" in text


def test_a_failed_check_stands_out(run_dir):
    result = copy.deepcopy(RESULT)
    result["checks"][1]["passed"] = False
    assert '<td class="bad">FAILED</td>' in render(result)


def test_layers_kept_as_softmax_are_not_called_constant(run_dir):
    result = copy.deepcopy(RESULT)
    result["spec"]["keep_softmax"] = [0]
    text = render(result)
    assert "at any length" not in text
    assert "add their own share of the KV cache" in text


def test_what_layers_were_chosen_by_is_drawn(run_dir):
    result = copy.deepcopy(RESULT)
    assert "Damage by layer" not in render(result)
    rows = [{"layer": n, "loss": 1.3 + d, "damage": d} for n, d in enumerate((0.2, 0.7))]
    result["sensitivity"] = {"teacher": 1.3, "layers": rows, "kept": [1]}
    text = render(result)
    assert "Damage by layer" in text
    assert "kept as softmax: 1." in text


def test_an_unusable_result_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"has no result\.json"):
        report.write(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        report.write(tmp_path)
    for key in ("losses", "checks", "seconds"):
        broken = {name: value for name, value in RESULT.items() if name != key}
        (tmp_path / "result.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=f"incomplete .*{key}"):
            report.write(tmp_path)
