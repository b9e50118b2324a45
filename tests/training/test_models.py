"""The loop with models as jobs bring them: adapters, recomputed activations, low precision."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_run import small_model, small_rows, small_settings
from torch import nn

from linearize.errors import UsageError
from linearize.training import checkpoint
from linearize.training.loop import train

# peft 0.21 asks transformers 5.23 for a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Mixed(nn.Module):
    """A stand-in for a converted layer: scales the attention output by a learned weight."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.mix = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.mix.weight)

    def forward(self, *args, **kwargs):
        output, *rest = self.attention(*args, **kwargs)
        return output * self.mix.weight[0, 0], *rest


def adapted():
    """Model with LoRA on q and v and a trained mix weight per layer; the rest is frozen."""
    torch.manual_seed(0)
    model = small_model()
    for layer in model.model.layers:
        layer.self_attn = Mixed(layer.self_attn)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["mix"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def test_adapters_learn_from_the_untouched_model(tmp_path):
    model = adapted()
    settings = small_settings(
        12, objective={"distill": 1.0}, learning_rate=1e-3, mix_learning_rate=0.1, warmup=0
    )
    # Away from the teacher, so that there is something to regain.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    result = train(
        model, small_rows(), settings=settings, run_dir=tmp_path, teacher=model.disable_adapter
    )
    assert result.losses[-1] < 0.9 * result.losses[0]
    moved = {
        name: (parameter - before[name]).abs().max().item()
        for name, parameter in model.named_parameters()
    }
    assert all(
        (change > 0) == ("lora" in name or "mix.modules_to" in name)
        for name, change in moved.items()
    )
    # Adam's steps are about as long as the learning rate, so the groups can be told apart.
    mixes = [change for name, change in moved.items() if "mix.modules_to_save" in name]
    assert max(mixes) > 10 * max(change for name, change in moved.items() if "lora" in name)
    saved = load_file(checkpoint.latest(tmp_path) / "state.safetensors")
    names = {name.split("/", 1)[1] for name in saved if name.startswith("parameter/")}
    assert names == {name for name, change in moved.items() if change}


@pytest.mark.parametrize("build", [small_model, adapted], ids=["plain", "adapters"])
def test_recomputed_activations_change_nothing(build, tmp_path):
    found = []
    for recompute in (False, True):
        model = build()
        settings = small_settings(3, gradient_checkpointing=recompute)
        result = train(model, small_rows(), settings=settings, run_dir=tmp_path / str(recompute))
        modules = list(model.modules())
        assert not any(getattr(module, "gradient_checkpointing", False) for module in modules)
        found.append((result.losses, list(model.parameters())))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["dtype", "weights"])
def test_bfloat16_computes_low_and_keeps_trained_weights_high(how, tmp_path):
    model = adapted()
    if how == "weights":  # `auto` then follows the frozen weights
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16() if not parameter.requires_grad else parameter
    dtypes = set()
    model.register_forward_hook(lambda module, args, output: dtypes.add(output.logits.dtype))
    settings = small_settings(10, dtype="bfloat16" if how == "dtype" else "auto")
    result = train(model, small_rows(), settings=settings, run_dir=tmp_path)
    assert dtypes == {torch.bfloat16}
    assert result.losses[-1] < result.losses[0]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    # The next run in this process may ask for something else.
    train(adapted(), small_rows(), settings=small_settings(1), run_dir=tmp_path / "next")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can train in float16")
def test_float16_without_an_accelerator_says_so(tmp_path):
    settings = small_settings(1, dtype="float16")
    with pytest.raises(
        UsageError, match=r"training\.dtype=float16 needs .* use bfloat16 or float32"
    ):
        train(small_model(), small_rows(), settings=settings, run_dir=tmp_path)
