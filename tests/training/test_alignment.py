"""The objective `align`: each layer against softmax attention, on the teacher's own inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_run import small_model
from torch import nn

from linearize import LigerSpec, apply
from linearize.errors import UsageError
from linearize.liger.layout import Layout
from linearize.liger.modeling import attention_mode
from linearize.training.objectives import Forward, total


def student(**spec) -> PeftModel:
    """Converted, with adapters and mix weights that are no longer at their start."""
    torch.manual_seed(0)
    model = apply(small_model(), LigerSpec(**{"window": 8, "mix": "joint", **spec}))
    lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], modules_to_save=["mix"])
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def step_of(model: PeftModel) -> Forward:
    @contextlib.contextmanager
    def teacher() -> Iterator[None]:
        with model.disable_adapter(), attention_mode(model, "softmax"):
            yield

    torch.manual_seed(1)
    ids = torch.randint(10, 500, (2, 30))
    targets = ids.roll(-1, 1)
    targets[:, -1] = targets[0, 3:9] = -100
    return Forward(model, {"input_ids": ids, "targets": targets}, teacher=teacher)


def definition(model: nn.Module, step: Forward) -> torch.Tensor:
    """The base runs; each of its attentions hands its input on to the converted layer."""
    base = small_model().eval()
    ids, counted = step.batch["input_ids"], step.targets != -100
    rotary = base.model.rotary_emb(ids.float()[..., None], torch.arange(ids.shape[1])[None])
    shares = []
    converted = model.get_base_model().model.layers
    hidden = base(ids, output_hidden_states=True).hidden_states
    for layer, ours, x in zip(base.model.layers, converted, hidden[:-1], strict=True):
        x = layer.input_layernorm(x).detach()
        mask = torch.full((30, 30), -torch.inf).triu(1)[None, None]
        teacher = layer.self_attn(x, position_embeddings=rotary, attention_mask=mask)[0]
        found = ours.self_attn(x, rotary, layout=Layout("liger", 0))[0]
        missed = (found - teacher).norm(dim=-1) ** 2 / teacher.norm(dim=-1) ** 2
        shares.append(missed[counted].mean())
    return torch.stack(shares).mean()


def test_the_objective_is_its_definition() -> None:
    model = student()
    step = step_of(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss, values = total(step, {"align": 2.0})
    expected = definition(model, step)
    assert expected > 0.01
    torch.testing.assert_close(loss, 2 * expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(values["align"], expected.detach(), rtol=1e-4, atol=0)
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    defined = torch.autograd.grad(2 * expected, trained, allow_unused=True)
    assert all(x is not None and x.any() for x in found)
    for ours, theirs in zip(found, defined, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_one_pass_of_the_teacher_serves_both_and_layers_that_stay_are_left_out() -> None:
    model = student(keep_softmax=(0,))
    passes = []
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda *_: passes.append(1))
    step = step_of(model)
    _, values = total(step, {"distill": 1.0, "align": 1.0})
    assert len(passes) == 2  # the student's own, and the teacher's
    assert len(step.attentions) == model.config.num_hidden_layers - 1
    assert not any(call.output.requires_grad for call in step.attentions)
    assert values["align"] > 0
    assert all(not m._forward_hooks for m in model.modules() if hasattr(m, "spec"))


def test_attention_that_is_whole_has_nothing_to_learn() -> None:
    torch.manual_seed(0)
    model = apply(small_model(), LigerSpec(window=30, mix="joint"))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    loss, _ = total(step_of(model), {"align": 1.0})
    assert loss < 1e-9


def test_a_model_without_converted_layers_is_refused() -> None:
    model = small_model()
    step = step_of(student())
    plain = Forward(model, step.batch, teacher=contextlib.nullcontext)
    with pytest.raises(UsageError, match="compares converted layers"):
        total(plain, {"align": 1.0})
