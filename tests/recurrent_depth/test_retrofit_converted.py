"""Both at once: Liger attention inside a looped model, a state per layer and recurrence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from looped_models import close, tokens
from test_retrofit import SPEC, base, pruned
from transformers import PreTrainedModel

import linearize
from linearize.converted import cast
from linearize.decoding.recurrent_depth.adaptive import adaptive
from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.diffusion_forcing import diffuse
from linearize.decoding.recurrent_depth.request import Request
from linearize.decoding.recurrent_depth.speculative import self_speculative
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings
from linearize.errors import InputError, UsageError
from linearize.liger.modeling import apply
from linearize.liger.spec import LigerSpec
from linearize.recurrent_depth.conformance import check_interface
from linearize.recurrent_depth.retrofit import retrofit

LIGER = {
    "learned": LigerSpec(window=4),
    "fixed, one layer softmax": LigerSpec(window=4, mix="fixed", keep_softmax=(-2,)),
    "window": LigerSpec(window=3, mix="window"),
    "two states": LigerSpec(window=4, gate="gsa", slots=6),
}
FAMILIES = ["llama", "mistral", "qwen2, windows", "qwen3"]


def mixed(model: PreTrainedModel) -> PreTrainedModel:
    """With learned mixes that let the recurrence through."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mix.weight"):
                parameter.copy_(torch.linspace(0.3, 0.8, len(parameter)))
    return model


def looped(kind: str = "llama", spec: LigerSpec = LIGER["learned"]) -> PreTrainedModel:
    model = retrofit(mixed(apply(base(kind), spec)), SPEC)
    with torch.no_grad():
        model.adapter.weight.add_(0.1 * torch.randn_like(model.adapter.weight))
    return model.eval()


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_one_loop_is_the_pruned_converted_model(kind: str) -> None:
    ids = tokens(2, 14)
    expected = mixed(apply(pruned(base(kind), [0, 3, 4, 5]), LIGER["learned"]))(ids).logits
    model = retrofit(mixed(apply(base(kind), LIGER["learned"])), SPEC)
    close(model(ids, num_steps=1).logits, expected)
    close(model(ids, num_steps=3).logits, expected)


def test_layers_kept_as_softmax_are_renumbered() -> None:
    config = looped(spec=LIGER["fixed, one layer softmax"]).config
    assert config.linearize["spec"]["keep_softmax"] == [2]
    assert config.layer_types[2] == "full_attention"
    assert config.linearize["layers"] == [0, 3, 4, 5]


@pytest.mark.parametrize("spec", LIGER)
def test_the_promises_of_the_interface(spec: str) -> None:
    model = looped(spec=LIGER[spec])
    assert model.loop.stateful
    check_interface(model, tokens(1, 13))


@pytest.mark.parametrize("spec", LIGER)
@pytest.mark.parametrize("beams", [1, 2])
def test_batches_of_rows_padded_on_the_left(spec: str, beams: int) -> None:
    model, rows = looped(spec=LIGER[spec]), [tokens(1, n, seed=n)[0] for n in (9, 3, 12)]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 12 - len(row) :], mask[i, 12 - len(row) :] = row, 1
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "num_steps": 4}
    got = model.generate(ids, attention_mask=mask, **settings)
    without = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    assert got.tolist() == without.tolist()
    for i, row in enumerate(rows):
        assert got[i, 12:].tolist() == model.generate(row[None], **settings)[0, len(row) :].tolist()
    packed = torch.cat([torch.arange(len(r)) for r in rows])[None]
    with torch.no_grad():
        together = model(torch.cat(rows)[None], position_ids=packed).logits[0]
        close(together, torch.cat([model(r[None]).logits[0] for r in rows]))


def test_every_recurrence_has_a_state_of_its_own() -> None:
    model, ids = looped(), tokens(2, 6)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache, num_steps=3)
    assert sorted(cache.states) == [0, 1, 2]
    states = [cache.states[t].layers[1].recurrent_states[0] for t in range(3)]
    assert not any(torch.allclose(states[0], s) for s in states[1:])
    with torch.no_grad():
        sizes = []
        for i in range(6):
            model(ids[:, i : i + 1], past_key_values=cache, num_steps=3)
            sizes.append(cache.nbytes)
    assert sizes[1:] == sizes[1:2] * 5, "constant memory, once the windows are full"
    with torch.no_grad(), pytest.raises(UsageError, match=r"recurrence 4 has read 0 .* num_steps"):
        model(ids[:, :1], past_key_values=cache, num_steps=4)


def test_what_a_state_cannot_do() -> None:
    model, ids = looped(), tokens(1, 6)
    cache, at = model.new_cache(), torch.arange(6)[None]
    with torch.no_grad():
        model.embed(ids, at, cache)
        model.trim(cache, 6)
        with pytest.raises(UsageError, match="cannot take tokens back"):
            model.trim(cache, 3)
        with pytest.raises(UsageError, match="given again"):
            model.embed(ids[:, 3:], at[:, 3:].clone(), cache)
        model.trim(cache, 0)
        close(model.embed(ids, at, cache), model.embed(ids, at))


def test_samplers_that_go_back_are_refused() -> None:
    model, request = looped(), Request(tokens(2, 6), 5)
    for sampler in (adaptive, self_speculative):
        with pytest.raises(UsageError, match="recurrent states of LoopedLlama"):
            sampler(model, request)
    with pytest.raises(UsageError, match="'diffusion-forcing' takes tokens back"):
        diffuse(model, request, WaveSettings())
    found = autoregressive(model, request, num_steps=4).ids
    plain = model.generate(request.input_ids, max_new_tokens=5, do_sample=False, num_steps=4)
    assert found.tolist() == plain.tolist()


def test_saved_loaded_and_trained(tmp_path: Path) -> None:
    model, ids = looped(spec=LIGER["learned"]), tokens(2, 9)
    cast(model, "bfloat16").save_pretrained(tmp_path)
    again = linearize.load(tmp_path, dtype=torch.float32)
    assert again.loop == model.loop
    with torch.no_grad():
        close(again(ids).logits, cast(model, "float32")(ids).logits, 1e-5)
    again.train()
    again(ids, labels=ids, num_steps=(1, 2)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in again.parameters())
    assert all(p.grad.any() for n, p in again.named_parameters() if n.endswith("mix.weight"))


def test_prefix_encoders_are_refused() -> None:
    with pytest.raises(InputError, match="encodes prompts as a whole"):
        retrofit(apply(base("llama"), LigerSpec(prefix="jrt")), SPEC)
