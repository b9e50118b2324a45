"""Numbers of the original authors' code, at the tolerances of their README."""

from __future__ import annotations

import pytest
import torch
import transformers

from linearize import LigerSpec, apply
from linearize.liger.modeling import attention_mode

CASES = [
    "llama_gla_leftpad_t90",
    "llama_gla_t130",
    "llama_gla_t37_mha_tied",
    "llama_gla_t65_hd32_llama3rope",
    "llama_gsa_m12_t37",
    "llama_gsa_m8_t130",
    "llama_hgrn2_stress_t200_mqa",
    "llama_hgrn2_t130",
    "mistral_gla_t130_hd32",
    "qwen2_gla_t130",
    "qwen3_gla_t130",
]


def test_every_case_is_covered(golden) -> None:
    assert sorted(c for f in ("gla", "gsa", "hgrn2") for c in golden.cases(f)) == CASES


@pytest.mark.parametrize("window", [65, 64])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_model(golden, case: str, window: int) -> None:
    described = golden.settings(case)
    config = transformers.AutoConfig.for_model(**described["base_config"])
    liger, stress = described["liger"], "stress" in case
    slots = {"slots": liger["num_slots"]} if liger["family"] == "gsa" else {}
    weights = golden.tensors(f"{case}.weights")
    arrays = golden.tensors(f"{case}.arrays")
    # The authors' file drops Qwen3's per-head norms; the design keeps them.
    prefix = "qknorm." if config.model_type == "qwen3" else ""
    model = getattr(transformers, config.architectures[0])(config).eval()
    unfilled = model.load_state_dict(weights, strict=False).missing_keys
    assert set(unfilled) <= {"lm_head.weight"}
    before = {name for name, _ in model.named_parameters()}

    apply(model, LigerSpec(gate=liger["family"], window=window, mix="fixed", **slots))
    assert {name for name, _ in model.named_parameters()} == before, "parameters were added"
    ids, mask = arrays["input_ids"], arrays.get("attention_mask")
    real = slice(None) if mask is None else mask.bool()
    inside = _record_attention(model)

    def check(got: torch.Tensor, name: str, atol: float) -> None:
        expected = arrays[prefix + name]
        torch.testing.assert_close(got[real], expected[real], rtol=0, atol=atol)

    out = model(ids, attention_mask=mask)
    check(out.logits, "logits" if window == 65 else "logits_win64", 1e-3 if stress else 2e-4)
    if window == 65:
        for i, layer in enumerate(model.model.layers):
            groups = layer.self_attn.num_key_value_groups
            states = out.past_key_values.layers[i].recurrent_states.values()
            names = ("state_k", "state_v") if slots else ("state",)
            for state, name in zip(states, names, strict=True):
                shared = state.repeat_interleave(groups, 1)
                expected = arrays[f"{prefix}{name}.{i}"]
                torch.testing.assert_close(shared, expected, rtol=0, atol=3e-4 if stress else 1e-4)
            check(inside[i], f"attn_out.{i}", 1e-3 if stress else 1e-4)
    with attention_mode(model, "softmax"):
        teacher = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(teacher[real], arrays["base_logits"][real], rtol=0, atol=1e-4)


def _record_attention(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Output of each attention module in the last forward pass."""
    found: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(model.model.layers):

        def keep(module: torch.nn.Module, args: tuple, out: tuple, i: int = i) -> None:
            found.setdefault(i, out[0])

        layer.self_attn.register_forward_hook(keep)
    return found
