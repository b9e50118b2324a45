"""transformers' own `generate`, in every way people call it."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, converted, tokens
from transformers import PreTrainedModel, set_seed

NEW = 24


@pytest.fixture(params=FAMILIES, scope="module")
def model(request) -> PreTrainedModel:
    return converted(request.param, window=16, keep_softmax=(1,))


def generate(model: PreTrainedModel, ids: torch.Tensor, **kw) -> torch.Tensor:
    kw = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": 0} | kw
    return model.generate(ids, **kw)


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokens(3, 40), torch.ones(3, 40, dtype=torch.long)
    mask[0, :25], mask[1, :3] = 0, 0
    return ids.where(mask.bool(), 0), mask


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 0.8},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=str,
)
def test_with_and_without_cache(model: PreTrainedModel, how: dict) -> None:
    ids, mask = left_padded()
    found = []
    for use_cache in (True, False):
        set_seed(0)
        found.append(generate(model, ids, attention_mask=mask, use_cache=use_cache, **how))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "how",
    [{"cache_implementation": "static"}, {"prefill_chunk_size": 7}],
    ids=str,
)
@pytest.mark.parametrize("beams", [1, 2])
def test_other_caches_and_prefills(model: PreTrainedModel, how: dict, beams: int) -> None:
    ids, mask = left_padded()
    expected = generate(model, ids, attention_mask=mask, num_beams=beams)
    assert torch.equal(generate(model, ids, attention_mask=mask, num_beams=beams, **how), expected)


def test_left_padding_changes_nothing(model: PreTrainedModel) -> None:
    ids, mask = left_padded()
    batch = generate(model, ids, attention_mask=mask)
    for row in range(3):
        alone = generate(model, ids[row : row + 1, mask[row].bool()])
        assert torch.equal(batch[row, -NEW:], alone[0, -NEW:])


def test_going_on_from_a_returned_cache(model: PreTrainedModel) -> None:
    ids = tokens(2, 30)
    whole = generate(model, ids)
    first = generate(model, ids, max_new_tokens=10, min_new_tokens=10, return_dict_in_generate=True)
    seen = torch.ones_like(first.sequences)  # else generate takes a generated 0 for padding
    rest = generate(
        model, first.sequences, past_key_values=first.past_key_values, attention_mask=seen,
        max_new_tokens=NEW - 10, min_new_tokens=NEW - 10,
    )  # fmt: skip
    assert torch.equal(rest, whole)


def test_what_transformers_cannot_roll_back_fails_loudly(model: PreTrainedModel) -> None:
    """Prompt lookup crops the cache, and recurrent states cannot be cropped."""
    with pytest.raises(ValueError, match="not supported with stateful models"):
        generate(model, tokens(1, 30), prompt_lookup_num_tokens=3)
