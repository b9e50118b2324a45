"""decode --compare and --explain: what they show is what happened."""

from __future__ import annotations

import json

import pytest

from linearize.eval.metrics.repetition import repetition

PROMPT = "Once upon a time"


def test_texts_stand_beside_their_repetition_and_speed(run):
    asked = ("-p", PROMPT, "-n", 100)
    names = "greedy,dry,ditto-cap,sample"
    drawn = ("--temperature", 0.8, "--seed", 2)
    code, out, _ = run(*asked, "--compare", names, *drawn, "--sampler", "greedy", "--json")
    assert code == 2  # --sampler greedy has no temperature
    code, out, _ = run(*asked, "--compare", names, *drawn, "--json")
    found = {v["name"]: v for v in map(json.loads, out.splitlines())}
    assert code == 0
    assert list(found) == names.split(",")
    assert found["greedy"]["text"] == json.loads(run(*asked, "--json")[1])["text"]
    assert found["dry"]["settings"]["sampler"] == "sample"
    dry = json.loads(run(*asked, *drawn, "--dry", "--json")[1])
    assert found["dry"]["text"] == dry["text"]
    for value in found.values():
        text, ids = value["text"], value["ids"]
        assert value["metrics"] == repetition([text], prompts=[PROMPT], tokens=[ids])
        assert value["tokens_per_second"] > 0
    assert found["dry"]["metrics"]["rep-4"] < 1


@pytest.mark.parametrize("width", [60, 200])
def test_they_stand_side_by_side_where_there_is_room(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run("-p", PROMPT, "-n", 20, "--compare", "greedy,beam")
    texts = [
        json.loads(run("-p", PROMPT, "-n", 20, *b, "--json")[1])["text"]
        for b in ((), ("--num-beams", 4))
    ]
    assert code == 0
    head = out.splitlines()
    together = any("greedy" in line and "beam" in line for line in head[:3])
    assert together == (width == 200)
    assert ("--- greedy" in out) == (width == 60)
    if width == 60:
        assert all(text in out for text in texts)
    for row in ("rep-4", "diversity", "ended by", "tokens/s"):
        assert row in out


def test_options_reach_the_names_they_belong_to(run):
    asked = ("-p", PROMPT, "-n", 5, "--json", "--compare", "greedy,dry,beam,no-repeat-ngram")
    more = ("--dry-base", 2, "--option", "beam.num_beams=3", "--option=no-repeat-ngram.size=3")
    found = {v["name"]: v["settings"] for v in map(json.loads, run(*asked, *more)[1].splitlines())}
    assert found["greedy"]["options"] == found["greedy"]["remedies"] == {}
    assert found["dry"]["remedies"] == {"dry": {"base": 2}}
    assert (found["beam"]["sampler"], found["beam"]["options"]) == ("beam", {"num_beams": 3})
    assert found["no-repeat-ngram"]["remedies"] == {"no-repeat-ngram": {"size": 3}}


def test_names_can_be_joined(run):
    asked = ("-p", PROMPT, "-n", 5, "--json", "--compare", "sample+dry,dry+no-repeat-ngram")
    code, out, _ = run(*asked, "--option", "sample.top_k=3", "--option", "dry.base=2")
    found = {v["name"]: v["settings"] for v in map(json.loads, out.splitlines())}
    assert code == 0
    assert found["sample+dry"]["options"] == {"top_k": 3}
    assert found["sample+dry"]["remedies"] == {"dry": {"base": 2}}
    assert found["dry+no-repeat-ngram"]["sampler"] == "greedy"
    assert list(found["dry+no-repeat-ngram"]["remedies"]) == ["dry", "no-repeat-ngram"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--compare", "beam+sample"), "names 2 samplers"),
        (("--compare", "greedy,dri"), "did you mean 'dry'"),
        (("--compare", "greedy", "--dry"), "'dry' is asked for, but --compare does not name it"),
        (("--compare", "greedy,dry", "--explain"), "two views"),
        (("--compare", "greedy,sample", "--num-return", 2), "one text for each name"),
        (("--compare", "greedy", "--language", "pyton"), "did you mean 'python'"),
        (("--compare", "greedy", "--option", "dry.base=3"), "'dry' is not used"),
        (("--compare", " , "), "names nothing"),
        (("--explain", "--num-beams", 2), "follows one text"),
    ],
    ids=str,
)
def test_mistakes(run, arguments, says):
    code, _, err = run("-p", "a", *arguments)
    assert code == 2
    assert says in err


def test_an_explanation_tells_every_penalty(run):
    asked = ("-p", PROMPT, "-n", 120)
    code, out, _ = run(*asked, "--dry", "--no-repeat-ngram", 3, "--explain", "--json")
    values = json.loads(out)
    assert code == 0
    moved = [p for p in values["penalties"] if p["now"] != p["would_have_been"]]
    assert moved
    for penalty in values["penalties"]:
        assert penalty["remedy"] in {"dry", "no-repeat-ngram"}
        assert penalty["reason"]
        assert all(t["after"] is None or t["after"] < t["before"] for t in penalty["tokens"])
    for penalty in moved:
        assert penalty["would_have_been"] in [t["id"] for t in penalty["tokens"]]
    last = {p["position"]: p["now"] for p in values["penalties"]}
    assert all(values["ids"][position] == now for position, now in last.items())
    free = json.loads(run(*asked, "--json")[1])["ids"]
    first = moved[0]["position"]
    assert values["ids"][:first] == free[:first]
    assert free[first] == moved[0]["would_have_been"]


def test_in_the_terminal_what_was_avoided_stands_in_the_text(run):
    asked = ("-p", PROMPT, "-n", 120, "--dry")
    values = json.loads(run(*asked, "--explain", "--json")[1])
    code, out, err = run(*asked, "--explain")
    moved = [p for p in values["penalties"] if p["now"] != p["would_have_been"]]
    assert code == 0
    assert out.count("[-") == out.count("-]{+") == len({p["position"] for p in moved})
    assert f"{len(moved)} changes moved the most likely token" in out
    assert "would go on with a repeat" in " ".join(out.split())
    shown = out.partition("What was weakened")[0]
    plain = "".join(part.partition("-]")[2] if "-]" in part else part for part in shown.split("[-"))
    assert plain.replace("{+", "").replace("+}", "").strip() == values["text"].strip()
    assert "120 tokens after" in err
