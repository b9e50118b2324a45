"""Every gate family in a converted model: cache, padding, packing, training, saving, generating."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import close, converted, small, tokens
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedModel,
    StaticCache,
)

from linearize import LigerSpec, apply
from linearize.errors import UsageError
from linearize.liger import gates, sizes
from linearize.liger.state import cache_bytes, snapshot
from linearize.ops import backend

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "gla", "hgrn2", "gsa", "rwkv6", "mamba2", "mlstm", "gated_retention", "retnet", "deltanet",
    "gated_deltanet", "linear",
}  # fmt: skip
every_gate = pytest.mark.parametrize("gate", sorted(FAMILIES))
T = 90


def model_with(gate: str, **spec) -> PreTrainedModel:
    return converted("llama", gate=gate, window=8, slots=5, mix="fixed", **spec)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokens(2, T), torch.ones(2, T, dtype=torch.long)
    mask[0, :37] = 0
    return ids, mask


def test_every_family_is_tested() -> None:
    assert set(gates.GATES) == FAMILIES


@every_gate
@torch.no_grad()
def test_forward(gate: str) -> None:
    """Chunks, token by token, chunked prefill, padding and packing: the same logits."""
    model, (ids, mask) = model_with(gate), padded()
    real = mask.bool()
    full = model(ids, attention_mask=mask, use_cache=False).logits
    with backend.use("recurrent"):
        defined = model(ids, attention_mask=mask, use_cache=False).logits
    close(full[real], defined[real])
    close(model(ids[:1, 37:], use_cache=False).logits, full[:1, 37:])

    for cache, cuts in (
        (DynamicCache(config=model.config), [*range(40, T)]),
        (StaticCache(config=model.config, max_cache_len=T), [50, 51, 80]),
    ):
        pieces = [
            model(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
            for a, b in zip([0, *cuts], [*cuts, T], strict=True)
        ]
        close(torch.cat(pieces, 1)[real], full[real])

    positions = torch.cat([torch.arange(30), torch.arange(T - 30)]).expand(2, -1)
    packed = model(ids, position_ids=positions, use_cache=False).logits
    close(packed[:, :30], model(ids[:, :30], use_cache=False).logits)
    close(packed[:, 30:], model(ids[:, 30:], use_cache=False).logits)


@every_gate
@torch.no_grad()
def test_saved_loaded_and_generating(gate: str, tmp_path: Path) -> None:
    model = model_with(gate, keep_softmax=(0,))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, mask = padded()
    assert torch.equal(again(ids).logits, model(ids).logits)
    how = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    cached = again.generate(ids, **how)
    assert torch.equal(cached, again.generate(ids, use_cache=False, **how))
    assert torch.equal(cached, again.generate(ids, cache_implementation="static", **how))
    beams = {"num_beams": 3, **how}
    found, plain = again.generate(ids, **beams), again.generate(ids, use_cache=False, **beams)
    assert torch.equal(found, plain), "beams do not reorder the states"


@every_gate
def test_the_state_has_the_stated_size(gate: str) -> None:
    model, cache_of = model_with(gate), {}
    shape = sizes.Shape.of(LlamaConfig(**small("llama").config.to_diff_dict()), LigerSpec())
    spec = LigerSpec(gate=gate, window=8, slots=5)
    expected = sizes.state_bytes(shape, spec, torch.float32)["total"]
    with torch.no_grad():
        for length in (40, 80):
            cache = DynamicCache(config=model.config)
            model(tokens(1, length), past_key_values=cache)
            cache_of[length] = cache_bytes(cache)
    assert set(cache_of.values()) == {expected}


@pytest.mark.parametrize("gate", ["gsa", "gated_deltanet"])
@torch.no_grad()
def test_snapshots(gate: str) -> None:
    model, ids = model_with(gate), tokens(1, 40)
    cache = DynamicCache(config=model.config)
    model(ids[:, :30], past_key_values=cache)
    kept = snapshot(cache)
    model(tokens(1, 9, seed=5), past_key_values=cache)
    got = model(ids[:, 30:], past_key_values=kept).logits
    close(got, model(ids, use_cache=False).logits[:, 30:])


@every_gate
def test_a_step_of_training_learns(gate: str) -> None:
    """Gradients reach the projections, and a step against them lowers the loss."""
    model, (ids, mask) = model_with(gate), padded()
    how = {"attention_mask": mask, "labels": ids.where(mask.bool(), -100), "use_cache": False}
    loss = model(ids, **how).loss
    loss.backward()
    attention = model.model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert projection.weight.grad.isfinite().all()
        assert projection.weight.grad.any()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad * 1e-2 / norm)
        assert model(ids, **how).loss < loss


@every_gate
@torch.no_grad()
def test_the_gate_source_is_honoured(gate: str) -> None:
    ids, found = tokens(1, 40), []
    for source in ("key", "query", "value"):
        if gates.GATES[gate].logits is None and source != "key":
            with pytest.raises(UsageError, match=f"the decay of gate '{gate}' is fixed"):
                model_with(gate, gate_source=source)
            return
        found.append(model_with(gate, gate_source=source)(ids).logits)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (found[a] - found[b]).abs().max() > 1e-3


@every_gate
@torch.no_grad()
def test_prefixes_work_or_are_refused_with_the_reason(gate: str) -> None:
    if gate == "gsa":
        with pytest.raises(UsageError, match=f"gate '{gate}' cannot work with prefix='jrt': "):
            model_with(gate, prefix="jrt")
        return
    model, (ids, mask) = model_with(gate, prefix="jrt"), padded()
    for name, parameter in model.named_parameters():
        if ".prefix." in name and not name.endswith("down"):
            torch.manual_seed(len(name))
            parameter.normal_(std=0.5)
    how = {"attention_mask": mask, "prefix_lengths": [20, 60], "use_cache": False}
    full = model(ids, **how).logits
    with backend.use("recurrent"):
        close(model(ids, **how).logits[mask.bool()], full[mask.bool()])
    plain = model(ids, attention_mask=mask, use_cache=False).logits
    assert (full - plain)[mask.bool()].abs().max() > 1e-3
    cache = DynamicCache(config=model.config)
    first = how | {"attention_mask": mask[:, :70], "use_cache": True}
    model(ids[:, :70], past_key_values=cache, **first)
    last = model(ids[:, 70:], attention_mask=mask, past_key_values=cache).logits
    close(last, full[:, 70:])


def arguments(gate: str, p: torch.Tensor, **spec) -> tuple[torch.Tensor, ...]:
    """What a family makes of keys p, with other queries and values."""
    make = torch.Generator().manual_seed(0)
    q, v = (torch.randn(p.shape, generator=make) for _ in range(2))
    return gates.find(gate).inputs(q, p, v, LigerSpec(gate=gate, **spec))


def test_formulas() -> None:
    """Every log decay against its formula, written as in the papers."""
    p = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(1)) * 2
    mean = p.mean(-1, keepdim=True)
    c = 0.3
    expected = {
        "gla": p.sigmoid().log() / 16,
        "hgrn2": p.sigmoid().log(),
        "rwkv6": (-p.exp()).clamp(min=-5),
        "mamba2": -(1 + mean.exp()).log(),
        "mlstm": mean.sigmoid().log() / 16,
        "gated_retention": mean.sigmoid().log() / 16,
        "retnet": (1 - 2.0 ** -torch.tensor([5.0, 6.0, 7.0])).log()[:, None].expand(2, 5, 3, 1),
        "gsa": F.adaptive_avg_pool1d(p.flatten(2), 9).view(2, 5, 3, 3).sigmoid().log() / 16,
        "gated_deltanet": mean.sigmoid().log() / 16,
    }
    for gate, g in expected.items():
        close(arguments(gate, p, slots=3)[-1], g, atol=1e-6)
    close(arguments("gla", p, gate_normalizer=4)[-1], p.sigmoid().log() / 4, atol=1e-6)
    bounded = arguments("hgrn2", p, gate_lower_bound=c)
    close(bounded[-1], (c + (1 - c) * p.sigmoid()).log(), atol=1e-6)
    close(bounded[1], 1 - bounded[-1].exp(), atol=1e-6)
    close(arguments("hgrn2", p)[1], (-p).sigmoid(), atol=1e-6)
    close(arguments("deltanet", p)[3], mean.sigmoid(), atol=1e-6)
    assert not arguments("deltanet", p)[-1].any()
    close(arguments("deltanet", p)[1].norm(dim=-1), torch.ones(2, 5, 3), atol=1e-6)


def test_pooling() -> None:
    make = torch.Generator().manual_seed(0)
    k, q = (torch.randn(2, 3, h, 16, generator=make) for h in (2, 4))
    assert gates.pool(k, 2, 16) is k or torch.equal(gates.pool(k, 2, 16), k)
    uneven = gates.pool(k, 2, 12)
    for i in range(24):  # the rule of the paper's code, over all heads' channels in a row
        low, high = i * 32 // 24, -(-(i + 1) * 32 // 24)
        close(uneven.flatten(2)[..., i], k.flatten(2)[..., low:high].mean(-1), atol=1e-6)
    close(gates.pool(q, 2, 1)[:, :, 1, 0], q[:, :, 2:].mean((-2, -1)), atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"gate": "gla2"}, "gate 'gla2' is not known; did you mean 'gla'"),
        ({"gate": "retnet", "gate_normalizer": 2}, "no log decay"),
        ({"gate": "gla", "gate_lower_bound": 0.5}, "only gate 'hgrn2'"),
        ({"gate_lower_bound": 1.0}, r"outside \[0, 1\)"),
        ({"gate_source": "keys"}, "did you mean 'key'"),
        ({"slots": 0}, "slots=0 must be an integer of at least 1"),
    ],
)
def test_misuse_is_named(spec: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply(small("llama"), LigerSpec(**spec))


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(UsageError, match="'gla' is registered already"):

        @gates.gate("gla", formula="", source="")
        def mine(x: gates.Inputs) -> tuple[torch.Tensor, ...]:
            return x.q, x.k, x.v, x.p


def test_the_page_tells_of_every_gate() -> None:
    page = (ROOT / "docs" / "gates.md").read_text()
    for name in FAMILIES:
        gate = gates.GATES[name]
        row = re.search(rf"^\| `{name}` \|.*$", page, re.MULTILINE)[0]
        normalizer = "none" if gate.normalizer is None else f"{gate.normalizer:g}"
        cells = [cell.strip() for cell in row.split("|")]
        assert " + ".join(" ".join(state) for state in gate.states) in cells
        assert normalizer in cells


def example() -> str:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    return next(x for x in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@gate(" in x)


@torch.no_grad()
def test_the_gate_in_contributing_works() -> None:
    before = set(gates.GATES)
    try:
        made: dict = {"__name__": "example"}
        exec(example(), made)
        (name,) = set(gates.GATES) - before
        model, ids = made["model"], tokens(1, 40) % 90
        full = model(ids, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        pieces = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(40)]
        close(torch.cat(pieces, 1), full)
        assert model.config.linearize["spec"]["gate"] == name
    finally:
        for name in set(gates.GATES) - before:
            del gates.GATES[name]


def test_installed_packages_bring_gates(tmp_path: Path) -> None:
    """As pip leaves them: a module, and metadata that name it."""
    (tmp_path / "halves.py").write_text(
        textwrap.dedent("""
            import torch
            from linearize.liger.gates import Inputs, gate

            @gate("halves", formula="as gla with g = log 0.5", source="a test", logits=None)
            def halves(x: Inputs):
                g = torch.full_like(x.k[..., :1], 0.5).log()
                return x.q.softmax(-1), x.k.softmax(-1), x.v, g
        """)
    )
    about = tmp_path / "halves-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[linearize.gates]\nhalves = halves\n")
    ended = subprocess.run(
        [sys.executable, "-m", "linearize.cli.main", "gates"],
        env={"PYTHONPATH": str(tmp_path), "COLUMNS": "200", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "g = log 0.5" in ended.stdout
