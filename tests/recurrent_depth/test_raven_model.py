"""The model in transformers: padding, generate, gradient, training."""

from __future__ import annotations

import pytest
import torch
from looped_models import close, small, tokens
from transformers import DynamicCache

from linearize.errors import InputError, UsageError

PAD = 0


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    T = max(len(r) for r in rows)
    ids, mask = torch.full((len(rows), T), PAD), torch.zeros(len(rows), T, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(T - len(row), T) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def rows() -> list[torch.Tensor]:
    return [tokens(1, n, seed=n)[0] for n in (7, 3, 12)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_padding_changes_nothing(model, rows, side: str, use_cache: bool) -> None:
    ids, mask = padded(rows, side)
    logits = model(ids, attention_mask=mask, num_steps=3, use_cache=use_cache).logits
    assert logits.isfinite().all()
    for i, row in enumerate(rows):
        alone = model(row[None], num_steps=3).logits[0]
        close(logits[i][mask[i].bool()], alone)


@pytest.mark.parametrize("sharing", [None, 1, 2])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 1e-4}])
def test_generate_in_a_batch_as_one_by_one(model, rows, sharing, how: dict) -> None:
    ids, mask = padded(rows, "left")
    settings = {"max_new_tokens": 9, "num_steps": 5, "pad_token_id": PAD} | {"do_sample": False}
    settings |= how
    got = model.generate(
        ids, attention_mask=mask, past_key_values=model.new_cache(sharing=sharing), **settings
    )
    for i, row in enumerate(rows):
        cache = model.new_cache(sharing=sharing)
        alone = model.generate(row[None], past_key_values=cache, **settings)
        assert got[i, ids.shape[1] :].tolist() == alone[0, len(row) :].tolist()


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_generate_with_and_without_cache(model, how: dict) -> None:
    ids = torch.cat([tokens(1, 6), tokens(1, 6)], 1)
    settings = {"max_new_tokens": 8, "num_steps": 4, "do_sample": False, "pad_token_id": PAD}
    cached = model.generate(ids, **settings, **how)
    how = {k: v for k, v in how.items() if k == "num_beams"}
    assert cached.tolist() == model.generate(ids, use_cache=False, **settings, **how).tolist()


def test_generate_continues_from_its_cache(model) -> None:
    ids = tokens(2, 5)
    settings = {"num_steps": 4, "do_sample": False, "pad_token_id": PAD}
    cache = model.new_cache()
    first = model.generate(ids, past_key_values=cache, max_new_tokens=4, **settings)
    more = model.generate(first, past_key_values=cache, max_new_tokens=4, **settings)
    assert more.tolist() == model.generate(ids, max_new_tokens=8, **settings).tolist()
    chunked = model.generate(ids, max_new_tokens=8, prefill_chunk_size=2, **settings)
    assert chunked.tolist() == more.tolist()


def test_generate_takes_states_of_the_prompt(model) -> None:
    ids = tokens(1, 5)
    states = model.initial_state(ids.shape, generator=torch.Generator().manual_seed(1))
    settings = {"num_steps": 1, "do_sample": False, "max_new_tokens": 3, "pad_token_id": PAD}
    got = model.generate(ids, input_states=states, **settings)
    with torch.no_grad():
        first = model(ids, input_states=states, num_steps=1).logits[0, -1].argmax()
    assert got[0, 5] == first


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(model) -> None:
    a, b = tokens(1, 4, seed=1), tokens(1, 6, seed=2)
    positions = torch.cat([torch.arange(4), torch.arange(6)])[None]
    out = model(torch.cat([a, b], 1), position_ids=positions, num_steps=3)
    assert out.past_key_values is None
    alone = torch.cat([model(x, num_steps=3).logits for x in (a, b)], 1)
    close(out.logits, alone)


@torch.no_grad()
def test_embeddings_instead_of_tokens(model) -> None:
    ids = tokens(2, 5)
    close(
        model(inputs_embeds=model.transformer.wte(ids), num_steps=2).logits,
        model(ids, num_steps=2).logits,
    )


def test_labels_are_shifted_inside(model) -> None:
    ids = tokens(2, 6)
    out = model(ids, labels=ids, num_steps=2)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    close(out.loss, expected)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_gradient_through_the_last_recurrences(model, k: int, cached: bool) -> None:
    """Equal to autograd through those alone, from a state that is a constant."""
    ids, n = tokens(2, 6), 4
    positions = torch.arange(6).expand(2, 6)
    model.zero_grad()
    model(ids, labels=ids, num_steps=(n, k), use_cache=cached).loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    with torch.no_grad():
        e = model.embed(ids, positions)
        z = model.initial_state(ids.shape, scale=0)
        for _ in range(n):
            z = model.core_step(z, e, positions)
    e = model.embed(ids, positions)
    for _ in range(k):
        z = model.core_step(z, e, positions)
    logits = model.decode(z, positions)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    for name, p in model.named_parameters():
        close(got[name], p.grad, 1e-5)
    assert got["transformer.adapter.weight"].abs().sum() > 0
    model.zero_grad()


def test_gradient_of_a_continued_text(model) -> None:
    """Over a cache, the new tokens' own keys and values carry gradient."""
    ids = tokens(1, 6)
    states = model.initial_state(ids.shape, scale=0)
    cache, new = model.new_cache(), states[:, 3:].clone().requires_grad_()
    with torch.no_grad():
        model(ids[:, :3], past_key_values=cache, num_steps=2)
    model(
        ids[:, 3:], past_key_values=cache, input_states=new, num_steps=(0, 2)
    ).logits.square().sum().backward()
    whole = states.clone().requires_grad_()
    model(ids, input_states=whole, num_steps=(0, 2)).logits[:, 3:].square().sum().backward()
    close(new.grad, whole.grad[:, 3:], 1e-4 * whole.grad.abs().max().item())
    assert new.grad.abs().max() > 0
    model.zero_grad()


def test_no_recurrence_with_gradient_leaves_the_core_alone(model) -> None:
    ids = tokens(1, 5)
    model.zero_grad()
    model(ids, labels=ids, num_steps=(3, 0)).loss.backward()
    assert model.transformer.core_block[0].attn.Wqkv.weight.grad is None
    assert model.transformer.coda[0].attn.Wqkv.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_checkpointing_changes_no_gradient() -> None:
    model, ids = small().train(), tokens(2, 6)
    grads = []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable()
        model.zero_grad()
        out = model(ids, labels=ids, num_steps=(2, 3), init_scale=0)
        out.loss.backward()
        assert out.past_key_values is None
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        close(grad, grads[1][name], 1e-6)


def test_training_draws_recurrences_and_states() -> None:
    model, ids = small(mean_recurrence=8).train(), tokens(1, 4)
    calls = []
    model.transformer.adapter.register_forward_hook(lambda *a: calls.append(1))
    counts, losses = set(), []
    for seed in range(8):
        calls.clear()
        make = torch.Generator().manual_seed(seed)
        losses.append(model(ids, labels=ids, generator=make).loss.item())
        counts.add(len(calls))
    assert len(counts) > 3
    again = model(ids, labels=ids, generator=torch.Generator().manual_seed(7)).loss.item()
    assert again == losses[-1]


def test_training_lowers_the_loss() -> None:
    model, ids = small().train(), tokens(4, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    make, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        loss = model(ids, labels=ids, generator=make).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


@torch.no_grad()
def test_bfloat16_is_near_float32() -> None:
    model, ids = small(), tokens(2, 8)
    exact = model(ids, num_steps=4).logits
    rounded = model.to(torch.bfloat16)(ids, num_steps=4).logits
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.2 * exact.norm()


def test_what_does_not_fit(model) -> None:
    ids = tokens(2, 5)
    with pytest.raises(UsageError, match="num_steps=0 is out of range"):
        model(ids, num_steps=0)
    with pytest.raises(UsageError, match="DynamicCache; a looped model needs"):
        model(ids, past_key_values=DynamicCache())
    with pytest.raises(UsageError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(UsageError, match=r"input_states \(1, 5, 24\)"):
        model(ids, input_states=torch.zeros(1, 5, 24))
    with pytest.raises(UsageError, match=r"attention_mask \(2, 1, 5, 5\)"):
        model(ids, attention_mask=torch.ones(2, 1, 5, 5))
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    with pytest.raises(UsageError, match="5 are cached and 1 are new"):
        model(ids[:, :1], past_key_values=cache, attention_mask=torch.ones(2, 1))
    with pytest.raises(UsageError, match="out of range"):
        model.generate(ids, num_steps=-1, max_new_tokens=2, pad_token_id=PAD)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"injection_type": "add"}, "injection_type='add'"),
        ({"n_layers": 7}, "n_layers=7"),
        ({"n_layers_in_recurrent_block": 0}, "nothing to loop"),
        ({"n_heads": 5}, "n_embd=24 must be n_heads=5"),
    ],
)
def test_variants_that_were_never_released(changes: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        small(**changes)
