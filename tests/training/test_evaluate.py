from __future__ import annotations

import contextlib
import math

import pytest
import torch
from small_run import SEQ_LEN, small_model, small_rows

from linearize.training.evaluate import evaluating, loss_by_position, mean_loss, token_losses


@pytest.fixture(scope="module")
def model():
    return small_model(dropout=0.5).train()


@pytest.mark.parametrize("boundaries", [True, False])
def test_losses_are_the_models_own(model, boundaries):
    rows = small_rows(boundaries=boundaries)
    losses = token_losses(model, rows, batch_size=5)
    assert losses.shape == (len(rows), SEQ_LEN)
    assert losses.dtype == torch.float32
    batch = rows.batch(range(len(rows)))
    assert torch.equal(losses.isnan(), batch["targets"] == -100)
    model.eval()
    with torch.no_grad():
        inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
        logits = model(**inputs, use_cache=False).logits
    model.train()
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["targets"])
    mean, count = mean_loss(model, rows, batch_size=7)
    assert mean == pytest.approx(expected.item(), rel=1e-5)
    assert count == (batch["targets"] != -100).sum()


def test_budget_is_whole_rows(model):
    rows = small_rows()
    all_losses = token_losses(model, rows, batch_size=4)
    some = token_losses(model, rows, batch_size=4, max_tokens=5 * SEQ_LEN + 1)
    torch.testing.assert_close(some, all_losses[:6], equal_nan=True)
    assert len(token_losses(model, rows, batch_size=4, max_tokens=10**9)) == len(rows)


def test_modes_come_back_even_after_an_error():
    model = small_model().train()
    model.model.norm.eval()
    with contextlib.suppress(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert not model.model.norm.training
    assert model.training
    assert model.model.layers[0].training


def test_positions_count_inside_documents(model):
    rows = small_rows()
    losses = token_losses(model, rows, batch_size=8)
    positions = rows.batch(range(len(rows)))["position_ids"]
    by_hand = losses[(positions >= 4) & (positions < 16)].nanmean().item()
    found = loss_by_position(losses, [0, 4, 16, 32, 64], rows=rows)
    assert found[1] == pytest.approx(by_hand, rel=1e-6)
    assert len(found) == 4
    assert math.isnan(found[3])
    columns = loss_by_position(losses, [0, 16, 32])
    expected = [losses[:, :16].nanmean().item(), losses[:, 16:].nanmean().item()]
    assert columns == pytest.approx(expected, rel=1e-6)
