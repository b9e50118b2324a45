"""decode --jrt: the document is read again, the question and the chat template are not."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

TEXT = "Tom has a red ball. Lily has a blue hat."
ASKED = "Lily has a"


def test_a_document_is_read_twice_before_its_question(run):
    code, out, err = run("-p", TEXT, "--question", ASKED, "--jrt", 2, "-n", 8)
    assert code == 0
    assert out == run("-p", f"{TEXT}\n{TEXT} {ASKED}", "-n", 8)[1]
    assert "read 2 times: " in err
    assert " s before the first new one" in err
    once = run("-p", TEXT, "--question", ASKED, "-n", 8)
    assert once[1] == run("-p", f"{TEXT} {ASKED}", "-n", 8)[1]
    assert "read" not in once[2]


def test_without_a_question_all_of_the_prompt_is_read_again(run):
    whole = f"{TEXT} {ASKED}"
    assert run("-p", whole, "--jrt", 3, "-n", 8)[1] == run("-p", "\n".join([whole] * 3), "-n", 8)[1]


def test_json_tells_the_cost(run, shared):
    words = AutoTokenizer.from_pretrained(shared / "data/models/stories260K")
    values = json.loads(run("-p", TEXT, "--question", ASKED, "--jrt", 2, "-n", 8, "--json")[1])
    told = values["jrt"]
    assert values["prompt"] == TEXT
    assert (told["jrt"], told["question"]) == (2, ASKED)
    assert told["tokens"] == values["prompt_tokens"]
    once = len(words(f"{TEXT} {ASKED}").input_ids)
    assert told["extra_tokens"] == values["prompt_tokens"] - once
    assert 0 < told["extra_seconds"] < told["first_token_seconds"] <= values["seconds"]
    beams = run("-p", TEXT, "--jrt", 2, "-n", 4, "--num-beams", 2, "--json")[1]
    assert json.loads(beams)["jrt"]["extra_seconds"] is None


def test_a_chat_template_stands_around_both_copies(run, stories):
    (stories / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    )
    flags = ("--jrt", 2, "--question", ASKED, "-n", 6, "--json")
    chat = json.loads(
        run("-p", TEXT, "--chat", "--system", "Be kind", *flags, model=str(stories))[1]
    )
    prompt = f"<system>Be kind<user>{TEXT}\n{TEXT} {ASKED}<answer>"
    plain = json.loads(run("-p", prompt, "-n", 6, "--json", model=str(stories))[1])
    words = AutoTokenizer.from_pretrained(stories)
    assert chat["prompt_tokens"] == len(words(prompt, add_special_tokens=False).input_ids)
    assert chat["jrt"]["extra_tokens"] > 0
    assert len(plain["ids"]) == len(chat["ids"])


def test_truncation_comes_before_repeating(run):
    long = " ".join(f"Tom saw {i} red balls." for i in range(400))
    flags = ("--jrt", 2, "--question", ASKED, "-n", 8, "--json", "--truncate", "left")
    values = json.loads(run("-p", long, *flags)[1])
    limit = 512
    assert limit - 8 - 20 <= values["prompt_tokens"] <= limit - 8
    assert values["jrt"]["extra_tokens"] == pytest.approx(values["prompt_tokens"] / 2, abs=12)


def test_lines_of_a_file(run, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in (TEXT, [1, 2, 3], "Tom has a dog."))
    )
    flags = ("--jsonl", source, "--out", out, "--question", ASKED, "-n", 6)
    code, _, err = run(*flags, "--jrt", 2)
    assert code == 3
    assert "line 2: --jrt needs text, not token ids" in err
    first, _, _ = map(json.loads, out.read_text().splitlines())
    alone = json.loads(run("-p", TEXT, "--question", ASKED, "--jrt", 2, "-n", 6, "--json")[1])
    assert first["text"] == alone["text"]
    assert first["jrt"]["extra_tokens"] == alone["jrt"]["extra_tokens"]
    assert run(*flags, "--jrt", 3)[0] == 2, "what is there was read twice"
    assert run(*flags, "--jrt", 2)[0] == 3, "the same again goes on"


def test_talking_has_no_document(run):
    code, _, err = run("--chat", "--jrt", 2)
    assert code == 2
    assert "--jrt and --question are for a prompt" in err
