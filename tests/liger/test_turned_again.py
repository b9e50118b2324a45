"""Turned queries and keys are made again in the backward pass, and gradients stay what they are."""

from __future__ import annotations

import pytest
import torch
from models import converted, tokens

from linearize.liger import attention
from linearize.liger.rotary import turned_again


def gradients(model) -> list[torch.Tensor]:
    ids = tokens(2, 80)
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3_text", "smollm3"])
@pytest.mark.parametrize("mix", ["fixed", "joint"])
def test_gradients_are_those_of_kept_ones(family, mix, monkeypatch) -> None:
    model = converted(family, window=16, mix=mix)
    again = gradients(model)
    monkeypatch.setattr(attention, "turned_again", lambda *_: torch.enable_grad())
    for one, other in zip(again, gradients(model), strict=True):
        assert torch.equal(one, other)


def test_what_is_turned_is_not_kept() -> None:
    made = []
    x = torch.randn(3, 4, requires_grad=True)
    raw = x.detach()

    def turn():
        made.append(raw * 2)
        return (made[-1],)

    (turned,) = (x * 2,)
    with turned_again(turn, (turned,)):
        o = turned.square().sum()
    assert not made
    o.backward()
    assert len(made) == 1
    torch.testing.assert_close(x.grad, 8 * raw)
    with torch.no_grad(), turned_again(turn, (turned,)):
        turned.square()
    assert len(made) == 1
