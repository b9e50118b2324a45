"""The model card: valid front matter, the right licence, every number, honest sentences."""

import copy

import pytest
import yaml
from results import RESULT

from linearize.card import model_card


def front(card):
    _, matter, body = card.split("---\n", 2)
    return yaml.safe_load(matter), body


def changed(**sections):
    result = copy.deepcopy(RESULT)
    for name, values in sections.items():
        result[name] |= values
    return result


def test_the_front_matter_is_what_the_hub_reads():
    values, body = front(model_card(RESULT))
    assert values["base_model"] == "someone/small-llama"
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "text-generation"
    assert values["license"] == "mit"
    assert {"linearize", "liger"} <= set(values["tags"])
    assert body.lstrip().startswith("# small-llama, linearized")


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("PSF License 2.0", {"license": "other", "license_name": "psf-license-2.0"}),
        (None, {"license": "unknown"}),
    ],
)
def test_the_licence_of_the_base_is_passed_on(licence, expected):
    card = model_card(changed(base={"license": licence}))
    values, body = front(card)
    assert {k: v for k, v in values.items() if k.startswith("license")} == expected
    assert (licence or "states no licence") in body


def test_a_local_base_is_no_hub_model(tmp_path):
    values, body = front(model_card(changed(base={"name": str(tmp_path)})))
    assert "base_model" not in values
    assert "huggingface.co" not in body


def test_every_number_is_there_with_the_window_alone_beside_it():
    card = model_card(RESULT)
    for text in ("1.3050", "1.3000", "1.3600", "1.0050", "1.0618", "700,000", "4.76%"):
        assert text in card
    assert "| window alone, untrained |" in card
    assert "same budget" not in card, "what was not measured is left out"
    assert "same budget" in model_card(changed(losses={"window_only_trained": 1.31}))
    assert RESULT["base"]["hash"] in card
    assert "From 79 tokens on" in card  # 25,280 bytes / 320 per token
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == RESULT["recipe"]


def test_constant_memory_is_claimed_only_where_it_is_true():
    assert "Memory per sequence is constant: 25.3 kB" in model_card(RESULT)
    kept = model_card(changed(spec={"keep_softmax": [0, -1]}))
    assert "is constant:" not in kept
    assert "Layers 0, -1 keep full softmax attention" in kept
    alone = model_card(changed(spec={"mix": "window"}))
    assert "a softmax window of 64 tokens" in alone
    assert "recurrence (`gla`)" not in alone


def test_failed_checks_are_named():
    assert "all 2 passed" in model_card(RESULT)
    result = copy.deepcopy(RESULT)
    result["checks"][0]["passed"] = False
    assert "failed: decode equals full forward" in model_card(result)


def test_an_adapter_says_how_it_is_loaded():
    values, body = front(model_card(changed(recipe={"output": {"save": "adapter"}})))
    assert values["library_name"] == "peft"
    assert values["base_model_relation"] == "adapter"
    assert "linearize merge" in body
    assert "AutoModelForCausalLM" not in body
