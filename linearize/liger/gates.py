"""Gate families: what the recurrence gets from the pretrained projections. One row per family.

A family is a function from `Inputs` to the arguments of its op, and a decorator that names the op,
the shape of its gate logits and its states. None has parameters: gates come from the pretrained
key, or from query or value (`LigerSpec.gate_source`), pooled over channels.
Source of the table: Liger (arXiv 2503.01496), table 1; the rest are extensions of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import UsageError, suggest
from .spec import DELAYED, LigerSpec

ENTRY_POINTS = "linearize.gates"  # group under which installed packages name modules with families
LOGITS = {"channel": "one per channel", "slot": "one per slot", "head": "one per head"}


@dataclass(frozen=True)
class Inputs:
    """What a family makes its op's arguments from: float32, before rotary embedding.

    - `q`: [B, T, H, K], `k`: [B, T, Hk, K], `v`: [B, T, Hk, V]; T of q may be 0.
    - `p`: [B, T, Hk, m], gate logits: m = K, slots or 1, as the family asks. None = it has none.
    - `n`: what the log decay is divided by.
    - `spec`: of the layer.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor | None
    n: float
    spec: LigerSpec


Prepare = Callable[[Inputs], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Gate:
    """One family; see `gate` for the fields."""

    name: str
    prepare: Prepare
    op: Callable[..., tuple[Tensor, Tensor | tuple[Tensor, ...]]]
    logits: str | None
    normalizer: float | None
    states: tuple[str, ...]
    formula: str
    source: str
    no_prefix: str | None
    signed: bool
    prefix_op: Callable[..., tuple[Tensor, Tensor]] | None

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, spec: LigerSpec) -> tuple[Tensor, ...]:
        """Arguments of `op` from projections of any dtype, shapes as in `Inputs`."""
        q, k, v = q.float(), k.float(), v.float()
        p = None
        if self.logits is not None:
            source = {"key": k, "query": q, "value": v}[spec.gate_source]
            p = pool(source, k.shape[2], self._width(k.shape[3], spec))
        n = spec.gate_normalizer or self.normalizer or 1.0
        return self.prepare(Inputs(q, k, v, p, n, spec))

    def state_shapes(self, key: int, value: int, slots: int) -> tuple[tuple[int, ...], ...]:
        """Axes of each state of one key/value head."""
        sizes = {"K": key, "V": value, "M": slots}
        return tuple(tuple(sizes[axis] for axis in state) for state in self.states)

    def state_size(self, key: int, value: int, slots: int) -> int:
        """Numbers in the states of one key/value head."""
        return sum(map(math.prod, self.state_shapes(key, value, slots)))

    def _width(self, channels: int, spec: LigerSpec) -> int:
        return {"channel": channels, "slot": spec.slots, "head": 1}[self.logits]


GATES: dict[str, Gate] = {}
_PREFIX_OPS = {ops.gla: ops.prefix_gla, ops.delta: ops.prefix_delta}


def gate(
    name: str,
    *,
    formula: str,
    source: str,
    op: Callable[..., tuple[Tensor, Tensor | tuple[Tensor, ...]]] = ops.gla,
    logits: str | None = "channel",
    normalizer: float | None = 1.0,
    states: Iterable[str] = ("KV",),
    no_prefix: str | None = None,
    signed: bool = False,
) -> Callable[[Prepare], Prepare]:
    """Register a gate family under `name`.

    - `formula`, `source`: one line each, for `linearize gates`.
    - `op`: called with what the function returns (query, key, value, the rest), and with
      `initial_state`, `mask` and `cu_seqlens`; gives outputs [B, T, H, V] and the state, or a tuple
      of states. Where all but the query is 0 it must leave the state alone.
    - `logits`: one of `LOGITS`, the shape of `Inputs.p`; None = the gate does not look at the text.
    - `normalizer`: default of `LigerSpec.gate_normalizer`; None = there is no log decay to divide.
    - `states`: axes of each state [S, Hk, ...] in letters: K key, V value, M slots.
    - `no_prefix`: why the family cannot work with `prefix="jrt"`. Families with op `ops.gla` or
      `ops.delta` can; their functions return the log decay last.
    - `signed`: what a query reads can be negative for positive values, so that it is no weight and
      `mix="joint"` has no normaliser.

    Raises `UsageError` if the name is taken by another function.
    """

    def register(prepare: Prepare) -> Prepare:
        if name in GATES and _home(GATES[name].prepare) != _home(prepare):
            raise UsageError(f"gate '{name}' is registered already; choose another name")
        prefix_op = None if no_prefix else _PREFIX_OPS.get(op)
        why = no_prefix or (None if prefix_op else "its op has no form with an encoded prefix")
        GATES[name] = Gate(
            name,
            prepare,
            op,
            logits,
            normalizer,
            tuple(states),
            formula,
            source,
            why,
            signed,
            prefix_op,
        )
        return prepare

    return register


def _home(prepare: Prepare) -> tuple[str, str]:
    return prepare.__module__, prepare.__qualname__  # the same where a notebook's cell runs again


def find(name: str) -> Gate:
    """The family called `name`, of this package or an installed one.

    Raises `UsageError` naming the nearest one.
    """
    if name not in GATES:
        load_extensions()
    if name not in GATES:
        raise UsageError(f"gate '{name}' is not known{suggest(name, GATES)}")
    return GATES[name]


def of(spec: LigerSpec) -> Gate:
    """The family of a spec. Raises `UsageError` for what the family cannot do, with the reason."""
    family = find(spec.gate)
    if spec.prefix != "none" and family.no_prefix:
        raise UsageError(
            f"gate '{spec.gate}' cannot work with prefix={spec.prefix!r}: {family.no_prefix}; "
            "leave out one of them"
        )
    if spec.gate_normalizer is not None and family.normalizer is None:
        raise UsageError(
            f"gate_normalizer={spec.gate_normalizer!r}: gate '{spec.gate}' has no log decay that "
            "it could divide; leave it out"
        )
    if spec.gate_source != "key" and family.logits is None:
        raise UsageError(
            f"gate_source={spec.gate_source!r}: the decay of gate '{spec.gate}' is fixed; leave "
            "it out"
        )
    if spec.mix in DELAYED and spec.gate_source == "query":
        raise UsageError(
            f"gate_source='query' cannot work with mix={spec.mix!r}: the query of a token that "
            "leaves the window is not kept; use key or value"
        )
    if spec.mix == "joint" and family.signed:
        raise UsageError(
            f"gate '{spec.gate}' cannot work with mix='joint': its products of queries and keys "
            "can be negative, so their sum is no normaliser; use mix='delayed'"
        )
    if spec.gate_lower_bound and spec.gate != "hgrn2":
        raise UsageError(
            f"gate_lower_bound={spec.gate_lower_bound!r}: only gate 'hgrn2' has a lower bound, "
            f"not '{spec.gate}'; leave it out"
        )
    return family


def load_extensions() -> None:
    """Import the modules that installed packages name in the entry point group."""
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def pool(x: Tensor, heads: int, width: int) -> Tensor:
    """Average pooling along the flattened channels: [B, T, h, D] -> [B, T, heads, width].

    Bins that do not divide the channels overlap (Liger, eq. 7). With `width` D and as many heads
    it is the identity.
    """
    channels, bins = x.shape[2] * x.shape[3], heads * width
    if channels == bins:
        pooled = x
    elif channels % bins == 0:
        pooled = x.flatten(2).unflatten(2, (bins, channels // bins)).mean(-1)
    else:
        pooled = F.adaptive_avg_pool1d(x.flatten(2), bins)
    return pooled.reshape(*x.shape[:2], heads, width)


@gate(
    "gla",
    normalizer=16.0,
    formula="S = exp(g) S + softmax(k)^T v, o = softmax(q) S, g = log sigmoid(p) / n",
    source="Liger; GLA, arXiv 2312.06635",
)
def gla(x: Inputs) -> tuple[Tensor, ...]:
    """The division by n is in the code of Liger's authors only."""
    return x.q.softmax(-1), x.k.softmax(-1), x.v, F.logsigmoid(x.p) / x.n


@gate(
    "hgrn2",
    formula="as gla with key 1 - exp(g), g = log(c + (1 - c) sigmoid(p)) / n, c = gate_lower_bound",
    source="Liger; HGRN2, arXiv 2404.07904",
)
def hgrn2(x: Inputs) -> tuple[Tensor, ...]:
    """The projected key appears only through the gate."""
    least = x.spec.gate_lower_bound
    g = torch.log(least + (1 - least) * x.p.sigmoid()) if least else F.logsigmoid(x.p)
    g = g / x.n
    return x.q.softmax(-1), -torch.expm1(g), x.v, g


@gate(
    "gsa",
    op=ops.gsa,
    logits="slot",
    normalizer=16.0,
    states=("KM", "MV"),
    no_prefix="slot keys and slot values are two states, the encoder's bank is one",
    formula="A = A exp(g) + k^T (1 - exp(g)), S = exp(g) S + (1 - exp(g))^T v, "
    "o = softmax(q A) S, g = log sigmoid(p) / n",
    source="Liger; GSA, arXiv 2409.07146",
)
def gsa(x: Inputs) -> tuple[Tensor, ...]:
    """Keys and queries as they are: the softmax is over the slots."""
    return x.q, x.k, x.v, F.logsigmoid(x.p) / x.n


# Raw keys reach values whose exponential forgets everything at once (the floor of RADLADS,
# arXiv 2505.03005).
_RWKV6_FLOOR = 5.0


@gate(
    "rwkv6",
    formula="as gla with g = -min(exp(p), 5) / n",
    source="Liger; RWKV-6, arXiv 2404.05892",
)
def rwkv6(x: Inputs) -> tuple[Tensor, ...]:
    """Without bonus and with the current token in the state, as RADLADS found best."""
    g = -x.p.clamp(max=math.log(_RWKV6_FLOOR)).exp() / x.n
    return x.q.softmax(-1), x.k.softmax(-1), x.v, g


@gate(
    "mamba2",
    logits="head",
    formula="as gla with one g = -softplus(p) / n per head",
    source="Liger; Mamba-2, arXiv 2405.21060",
)
def mamba2(x: Inputs) -> tuple[Tensor, ...]:
    """The sign is opposite to the others: a large key forgets."""
    return x.q.softmax(-1), x.k.softmax(-1), x.v, -F.softplus(x.p) / x.n


@gate(
    "gated_retention",
    logits="head",
    normalizer=16.0,
    formula="as gla with one g per head",
    source="Liger; YOCO, arXiv 2405.05254",
)
@gate(
    "mlstm",
    logits="head",
    normalizer=16.0,
    formula="as gla with one g per head; no input gate, no denominator",
    source="Liger; xLSTM, arXiv 2405.04517",
)
def sigmoid_per_head(x: Inputs) -> tuple[Tensor, ...]:
    """Liger's table gives both families the same gate; n = 16 is our choice."""
    return x.q.softmax(-1), x.k.softmax(-1), x.v, F.logsigmoid(x.p) / x.n


@gate(
    "retnet",
    logits=None,
    normalizer=None,
    formula="as gla with g = log(1 - 2^(-5 - h)) for key/value head h, whatever the text",
    source="extension; RetNet, arXiv 2307.08621",
)
def retnet(x: Inputs) -> tuple[Tensor, ...]:
    """Half-lives of 22, 44, 88, ... tokens."""
    heads = torch.arange(x.k.shape[2], device=x.k.device)
    g = torch.log1p(-torch.exp2(-5.0 - heads))
    return x.q.softmax(-1), x.k.softmax(-1), x.v, g[:, None].expand(*x.k.shape[:3], 1)


@gate(
    "linear",
    logits=None,
    normalizer=None,
    formula="as gla with g = 0: nothing is forgotten",
    source="extension; linear attention, arXiv 2006.16236",
)
def linear(x: Inputs) -> tuple[Tensor, ...]:
    """Without a normaliser of its own outputs grow with the text: it is meant for `mix="joint"`."""
    return x.q.softmax(-1), x.k.softmax(-1), x.v, x.v.new_zeros(()).expand(*x.k.shape[:3], 1)


@gate(
    "deltanet",
    op=ops.delta,
    logits="head",
    normalizer=None,
    signed=True,
    formula="S = S + u^T b (v - u S), o = (q / |q|) S, u = k / |k|, b = sigmoid(p) per head",
    source="extension; DeltaNet, arXiv 2406.06484",
)
def deltanet(x: Inputs) -> tuple[Tensor, ...]:
    """Keys of length 1: softmax keys are so short that hardly anything would be replaced.

    Signed keys want signed queries: softmax queries ended at higher losses after training.
    """
    q, k, beta = F.normalize(x.q, dim=-1), F.normalize(x.k, dim=-1), x.p.sigmoid()
    return q, k, x.v, beta, torch.zeros_like(beta)


@gate(
    "gated_deltanet",
    op=ops.delta,
    logits="head",
    normalizer=16.0,
    signed=True,
    formula="as deltanet on exp(g) S, g = log sigmoid(p) / n; b = sigmoid(v pooled), "
    "of k where p is from v",
    source="extension; Gated DeltaNet, arXiv 2412.06464",
)
def gated_deltanet(x: Inputs) -> tuple[Tensor, ...]:
    """Decay and write strength from two projections: from one they would move together."""
    other = x.k if x.spec.gate_source == "value" else x.v
    beta = pool(other, x.k.shape[2], 1).sigmoid()
    q, k = F.normalize(x.q, dim=-1), F.normalize(x.k, dim=-1)
    return q, k, x.v, beta, F.logsigmoid(x.p) / x.n
