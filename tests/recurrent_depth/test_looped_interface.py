"""The interface: Raven keeps its promises, somebody else's model plugs in, breaches are named."""

from __future__ import annotations

import pytest
import torch
from looped_models import close, small, tokens
from torch import nn

from linearize.errors import CheckError, UsageError
from linearize.recurrent_depth.cache import RecurrentDepthCache
from linearize.recurrent_depth.conformance import check_interface
from linearize.recurrent_depth.interface import LoopedModel, LoopFacts, is_looped, require_looped
from linearize.recurrent_depth.model import RavenForCausalLM


class Foreign(nn.Module):
    """A third party's looped model: one attention head, its own cache of text, no transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 8)
        self.inner = nn.Linear(16, 8)
        self.loop = LoopFacts(
            vocab_size=20, width=8, context=64, recurrences=4, prelude=0, core=1, coda=0
        )

    def new_cache(self, *, sharing=None, max_length=None) -> RecurrentDepthCache:
        return RecurrentDepthCache(prelude=0, core=1, coda=0, sharing=sharing)

    def initial_state(self, shape, *, scale=1.0, generator=None, dtype=None) -> torch.Tensor:
        return scale * torch.randn(*shape, 8, generator=generator, dtype=dtype)

    def _at(self, positions, cache):
        from linearize.recurrent_depth.placement import Placement

        return Placement(positions, positions.device) if cache is None else cache.place(positions)

    def embed(self, ids, positions, cache=None) -> torch.Tensor:
        self._at(positions, cache)
        return self.table(ids)

    def core_step(self, z, e, positions, cache=None, step=0) -> torch.Tensor:
        x = self.inner(torch.cat([z, e], -1)).tanh()[:, :, None]
        return self._at(positions, cache).attend(x, x, x, "core", 0, step)[:, :, 0]

    def decode(self, z, positions, cache=None, *, logits_to_keep=0) -> torch.Tensor:
        return z[:, -logits_to_keep:] @ self.table.weight.T

    def trim(self, cache, length) -> None:
        cache.trim(length)


@pytest.mark.parametrize("steps", [1, 4])
def test_raven_keeps_the_promises(steps: int) -> None:
    model = small()
    assert isinstance(model, LoopedModel)
    check_interface(model, tokens(1, 9), recurrences=steps)


def test_a_foreign_model_plugs_in() -> None:
    model = Foreign()
    assert is_looped(model)
    assert require_looped(model, needed_by="a sampler") is model
    check_interface(model, tokens(1, 9) % 20)


class _LooksAhead(Foreign):
    def embed(self, ids, positions, cache=None):
        e = super().embed(ids, positions, cache)
        return e + e.mean(1, keepdim=True)


class _IgnoresInput(Foreign):
    def core_step(self, z, e, positions, cache=None, step=0):
        return super().core_step(z, torch.zeros_like(e), positions, cache, step)


class _NeverTrims(Foreign):
    def trim(self, cache, length) -> None:
        pass


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (_LooksAhead, "logits differ"),
        (_IgnoresInput, "the core ignores its input"),
        (_NeverTrims, "trim forgets tokens"),
    ],
)
def test_breaches_are_named(model: type, told: str) -> None:
    with pytest.raises(CheckError, match=told):
        check_interface(model(), tokens(1, 9) % 20)


def test_other_models_are_refused() -> None:
    assert not is_looped(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="diffusion-forcing needs a looped model, and Linear is"):
        require_looped(nn.Linear(2, 2), needed_by="diffusion-forcing")
    with pytest.raises(UsageError, match="does not offer"):
        check_interface(nn.Linear(2, 2), tokens(1, 9))
    with pytest.raises(UsageError, match="at least 4 tokens"):
        check_interface(Foreign(), tokens(1, 3))


@torch.no_grad()
def test_interface_equals_forward() -> None:
    model, ids = small(), tokens(2, 7)
    positions, cache = torch.arange(7).expand(2, 7), model.new_cache()
    start = model.initial_state((2, 7), generator=torch.Generator().manual_seed(3))
    e, z = model.embed(ids, positions, cache), start
    for step in range(5):
        z = model.core_step(z, e, positions, cache, step)
    expected = model(ids, input_states=start, num_steps=5)
    assert torch.equal(z, expected.latent_state)
    assert torch.equal(model.decode(z, positions, cache), expected.logits)
    assert torch.equal(model.decode(z, positions, cache, logits_to_keep=2), expected.logits[:, -2:])


class _Rows(RavenForCausalLM):
    _packs = False


@pytest.mark.parametrize("sharing", [None, 1])
@pytest.mark.parametrize("cached", [True, False])
@torch.no_grad()
def test_unused_places_are_left_out_and_change_nothing(sharing, cached) -> None:
    packed, ids = small(), tokens(3, 5)
    rows = _Rows(packed.config).eval()
    rows.load_state_dict(packed.state_dict())
    passes = [[[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4], [-1, -1, -1, -1, 0]]]
    if cached:  # one row continues, one is done again from the middle, one does not take part
        passes.append([[3, 4, 5, -1, -1], [2, 3, -1, -1, -1], [-1] * 5])
    worked = []
    block = packed.transformer.core_block[0]
    block.register_forward_hook(lambda module, given, out: worked.append(out.shape[:2].numel()))
    caches = [m.new_cache(sharing=sharing) if cached else None for m in (packed, rows)]
    for where in map(torch.tensor, passes):
        found = []
        for model, cache in zip((packed, rows), caches, strict=True):
            e, z = model.embed(ids, where, cache), model.initial_state((3, 5), scale=0)
            for step in range(2):
                z = model.core_step(z, e, where, cache, step)
            last = model.decode(z, where, cache, logits_to_keep=2)
            found.append((e, z, model.decode(z, where, cache), last))
        used = where >= 0
        for a, b in zip(*found, strict=True):
            here = used[:, -b.shape[1] :]
            close(a[here], b[here], atol=1e-5)
        assert worked[-2:] == [int(used.sum())] * 2
