"""decode --chat: the model's template, turn by turn."""

from __future__ import annotations

import io
import json
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.decoding import generate

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late system') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def talker(stories):
    (stories / "chat_template.jinja").write_text(TEMPLATE)
    return stories


@pytest.fixture
def said(monkeypatch):
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def continued(path, text, tokens):
    model, tokenizer = (c.from_pretrained(path) for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return generate(model, tokenizer, [ids], max_new_tokens=tokens)[0]


def test_every_turn_sees_the_ones_before(run, talker, said):
    said("Hello there\n\nAnd then?\n/exit\nNever read\n")
    code, out, err = run("--chat", "--system", "Be kind", "-n", 6, "--json", model=str(talker))
    first, second = map(json.loads, out.splitlines())
    assert (code, err) == (0, "")
    start = "system: Be kind\nuser: Hello there\nassistant:"
    assert first["text"] == continued(talker, start, 6).text
    assert first["prompt"] == "Hello there"
    start += first["text"] + "\nuser: And then?\nassistant:"
    assert second["text"] == continued(talker, start, 6).text
    said("Hello there\n")  # the end of input ends as well
    code, out, _ = run("--chat", "--system", "Be kind", "-n", 6, model=str(talker))
    assert (code, out) == (0, first["text"] + "\n")


def test_one_prompt_goes_through_the_template_too(run, talker, tmp_path):
    code, out, _ = run("--chat", "-p", "Hello", "-n", 6, model=str(talker))
    expected = continued(talker, "user: Hello\nassistant:", 6).text
    assert (code, out) == (0, expected + "\n")
    source, found = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "Hello"}\n')
    jsonl = ("--jsonl", source, "--out", found, "--chat", "-n", 6)
    assert run(*jsonl, model=str(talker))[0] == 0
    assert json.loads(found.read_text())["text"] == expected
    code, _, err = run(*jsonl, "--system", "Be kind", model=str(talker))
    assert code == 2
    assert "other settings (system)" in err


def test_a_message_that_does_not_fit_is_taken_back(run, talker, said):
    said("word " * 600 + "\nHello\n")
    code, out, err = run("--chat", "-n", 6, "--json", model=str(talker))
    assert code == 0
    assert "512 positions" in err
    assert json.loads(out)["text"] == continued(talker, "user: Hello\nassistant:", 6).text


def test_ctrl_c_ends_the_answer_and_not_the_conversation(run, talker, said, monkeypatch):
    from linearize.decoding import text

    add, seen = text.Continuation.add, []

    def interrupted(self, token):
        seen.append(token)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return add(self, token)

    monkeypatch.setattr(text.Continuation, "add", interrupted)
    said("Hello\nAgain\n")
    code, out, err = run("--chat", "-n", 8, model=str(talker))
    assert code == 0
    assert "(ended)" in err
    assert len(seen) == 5 + 8
    broken, answer = out.splitlines()[0], out.splitlines()[1:]
    start = f"user: Hello\nassistant:{broken}\nuser: Again\nassistant:"
    monkeypatch.undo()
    assert "\n".join(answer) == continued(talker, start, 8).text


def test_a_template_that_refuses_is_quoted(run, talker):
    (talker / "chat_template.jinja").write_text("{{ raise_exception('no system messages') }}")
    code, _, err = run("--chat", "-p", "a", model=str(talker))
    assert code == 3
    assert "the chat template refuses the messages: no system messages" in err
