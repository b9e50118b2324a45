from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from small_run import small_model, small_rows

from linearize.errors import UsageError
from linearize.training import objectives
from linearize.training.objectives import OBJECTIVES, Forward, objective, token_mean, total


def forward(logits, targets, teacher_logits=None):
    """A step whose logits are given rather than computed."""
    step = Forward(torch.nn.Identity(), {"targets": targets})
    step.__dict__ |= {"logits": logits, "teacher_logits": teacher_logits}
    return step


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    targets = torch.randint(0, 50, (3, 11))
    targets[:, 4] = targets[0, :3] = -100
    return 4 * torch.randn(3, 11, 50), targets, 4 * torch.randn(3, 11, 50)


def value_and_gradient(function, logits):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    value.backward()
    return value.detach(), logits.grad


# Elements per chunk: all tokens at once, 7 tokens (an uneven last chunk), one token.
@pytest.mark.parametrize("elements", [2**24, 350, 1])
@pytest.mark.parametrize("name", ["next_token", "distill"])
def test_chunks_change_neither_value_nor_gradient(tensors, name, elements, monkeypatch):
    logits, targets, teacher = tensors
    seen = targets != -100

    def definition(s):
        if name == "next_token":
            return -s.log_softmax(-1)[seen].gather(-1, targets[seen][:, None]).mean()
        p, q = teacher[seen].softmax(-1), s[seen].softmax(-1)
        return (p * (p / q).log()).sum(-1).mean()

    expected = value_and_gradient(definition, logits)
    monkeypatch.setattr(objectives, "_CHUNK_ELEMENTS", elements)
    found = value_and_gradient(lambda s: OBJECTIVES[name](forward(s, targets, teacher)), logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_large_vocabulary_keeps_no_float32_copy_for_backward():
    logits = torch.randn(1, 96, 2**19, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 2**19, (1, 96))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def loss(targets, logits):
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = token_mean(loss, targets, logits)
    kept.pop(logits.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) < logits.nbytes / 100
    value.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_teacher_equal_to_student_has_nothing_to_teach(tensors):
    logits, targets, _ = tensors
    value, gradient = value_and_gradient(
        lambda s: objectives.distill(forward(s, targets, logits)), logits
    )
    assert value.abs() < 1e-6
    assert gradient.abs().max() < 1e-7


def test_no_targets_means_no_loss():
    logits = torch.randn(1, 4, 9)
    value, gradient = value_and_gradient(
        lambda s: objectives.next_token(forward(s, torch.full((1, 4), -100))), logits
    )
    assert value == 0
    assert not gradient.any()


def test_forward_runs_each_model_once_and_the_teacher_without_dropout():
    model = small_model(dropout=0.5).train()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    batch = small_rows().batch([0, 1])
    entered = []

    @contextlib.contextmanager
    def teacher():
        entered.append(True)
        yield

    step = Forward(model, batch, teacher=teacher)
    loss, values = total(step, {"distill": 2.0, "next_token": 0.5})
    assert calls == [True, False] or calls == [False, True]
    assert entered == [True]
    assert model.training
    assert not step.teacher_logits.requires_grad
    torch.testing.assert_close(
        loss.detach(), 2 * values["distill"] + 0.5 * values["next_token"], rtol=1e-6, atol=0
    )
    model.eval()
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        expected = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(step.teacher_logits, expected, rtol=0, atol=0)


def test_registering_an_objective_is_enough(tensors):
    logits, targets, _ = tensors

    @objective("squares")
    def squares(step):
        return step.logits.square().mean()

    try:
        loss, values = total(forward(logits, targets), {"squares": 3.0})
    finally:
        del OBJECTIVES["squares"]
    assert values.keys() == {"squares"}
    torch.testing.assert_close(loss, 3 * logits.square().mean())


def test_mistakes_say_what_to_do(tensors):
    logits, targets, _ = tensors
    with pytest.raises(UsageError, match="unknown objective 'distil'; did you mean 'distill'"):
        total(forward(logits, targets), {"distil": 1.0})
    with pytest.raises(UsageError, match="empty; known: align, cap, distill, ditto, m"):
        total(forward(logits, targets), {})
    with pytest.raises(UsageError, match="needs a teacher"):
        total(Forward(small_model(), small_rows().batch([0])), {"distill": 1.0})
