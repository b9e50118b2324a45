"""The model that ships with the package, and that it is what its papers say."""

import codeop
import contextlib
import json
import math
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from linearize import pretrain
from linearize.training.corpora import stdlib

HOME = Path(str(resources.files("linearize.embedded")))
RECORD = json.loads((HOME / "pretraining.json").read_text(encoding="utf-8"))
CODE = '''import os
import sys


def find_files(path, suffix=None):
    """Return the names of all files below a directory.

    If suffix is given, only files whose name ends with it are returned.
    """
    result = []
    for name in os.listdir(path):
        full = os.path.join(path, name)
        if os.path.isdir(full):
            result.extend(find_files(full, suffix))
        elif suffix is None or name.endswith(suffix):
            result.append(full)
    return result


if __name__ == '__main__':
    for name in find_files(sys.argv[1]):
        print(name)
'''


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(HOME, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(HOME)


@torch.no_grad()
def token_losses(model: PreTrainedModel, tokenizer: Tokenizer, text: str) -> torch.Tensor:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])[:, :1024]
    logits = model(ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def test_it_is_small_and_loads_with_stock_classes(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    assert (HOME / "model.safetensors").stat().st_size <= 8_000_000
    assert 1_000_000 <= model.num_parameters() == RECORD["parameters"] <= 4_000_000
    assert model.config.model_type == "llama"
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.max_position_embeddings == tokenizer.model_max_length >= 1024
    assert model.config.vocab_size == len(tokenizer)


def test_it_was_made_by_the_recipe_that_ships() -> None:
    made = pretrain.PretrainRecipe.model_validate(RECORD["recipe"])  # keys that came later: default
    assert pretrain.load("embedded") == made


def test_its_card_states_the_measured_loss() -> None:
    card = (HOME / "README.md").read_text(encoding="utf-8")
    assert f"{RECORD['held_out_loss']:.3f}" in card
    assert RECORD["corpus_sha256"] in card
    assert RECORD["versions"]["python"] in card


def test_it_has_learnt_python(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    learnt = token_losses(model, tokenizer, CODE).mean().item()
    assert learnt < 0.55 * math.log(len(tokenizer))
    backwards = token_losses(model, tokenizer, CODE[::-1]).mean().item()
    assert learnt < backwards - 2


def test_held_out_modules_are_predicted_as_recorded(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    held_out = [text for i, (_, text) in enumerate(stdlib()) if i % 50 == 49][:6]
    losses = [token_losses(model, tokenizer, text) for text in held_out]
    # Other versions of Python hold out other modules, so this is not the recorded number itself.
    assert torch.cat(losses).mean().item() == pytest.approx(RECORD["held_out_loss"], abs=0.6)


def test_long_context_helps() -> None:
    recorded = RECORD["held_out_loss_by_position"]
    loss = dict(zip(recorded["edges"], recorded["loss"], strict=False))
    assert recorded["edges"][-1] == 1024
    assert loss[512] < loss[64]


def test_most_of_what_it_writes_is_python(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    valid = 0
    for prompt in ["def read_file(path):", "class Queue:\n    def __init__(self", "import os\n"]:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(prompt)]] * 4)
        drawn = model.generate(ids, max_new_tokens=48, do_sample=True, temperature=0.7, top_p=0.95)
        for text in tokenizer.decode(drawn, skip_special_tokens=True):
            assert len(text) > len(prompt) + 20
            with contextlib.suppress(SyntaxError):
                # Whole lines only; None where valid so far and more may follow.
                codeop.compile_command(text.rpartition("\n")[0], symbol="exec")
                valid += 1
    assert valid >= 6  # of 12; text in another language or in no order gives next to none
