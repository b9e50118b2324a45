"""One token at a time as one compiled graph per kind of layer.

Behind a full window, a step of a converted layer reads and writes tensors of fixed size. So a
decoder layer, norms and MLP included, is one graph of tensors, weights among its inputs: traced for
every layer, compiled once for all whose graphs are equal. What does not fit the graph takes the
plain way over the same cache: prompts, a window that is not full or has padding in it, layers that
stay softmax, gradients.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten
from transformers import DynamicCache

from ..errors import UsageError
from ..ops.native import linear
from .attention import LigerAttention
from .layout import Layout
from .spec import COMPILE
from .step_ops import decompositions

_log = logging.getLogger(__name__)

# Layer steps the plain way until "auto" makes a graph: about as long as making it takes.
WORTH = 15_000

Graph = Callable[..., Any]
_compiled: dict[tuple, Graph] = {}  # by the text of the graph and what it is called with


@contextlib.contextmanager
def compiled_steps(model: nn.Module, when: str = "auto") -> Iterator[None]:
    """Inside the block, compiled layers decode single tokens of a converted model.

    - `when`: "always"; "never"; or "auto": on the CPU, if there is a C++ compiler, after so many
      steps with as many rows that making the graph would have paid (`WORTH`). Steps are counted,
      and graphs kept, over all blocks.

    Numbers change by no more than rounding. A graph that cannot be made is reported in the log and
    the plain step goes on. Layers with adapters that are not merged, and other models, are left as
    they are. Raises `UsageError` for another `when`.
    """
    if when not in COMPILE:
        raise UsageError(f"compile={when!r} is not known; choose one of: {', '.join(COMPILE)}")
    layers = [layer for layer in model.modules() if _fits(layer)]
    if when == "auto" and not (_on_cpu(model) and any(map(shutil.which, ("g++", "clang++")))):
        when = "never"
    if when == "never":
        layers = []
    heads = _heads(model) if layers else []
    for layer in layers:
        steps = layer.__dict__.get("_steps")
        if steps is None or steps.layer is not layer:  # of the layer that this one is a copy of
            layer._steps = steps = _Steps(layer)
        steps.patience = WORTH // len(layers) if when == "auto" else 0
        layer.forward = steps
    for head in heads:
        head.forward = functools.partial(_logits, head)
    try:
        yield
    finally:
        for module in (*layers, *heads):
            del module.forward


def _heads(model: nn.Module) -> list[nn.Linear]:
    """The head, if it is a linear layer that no other tool has changed."""
    head = model.get_output_embeddings()
    return [head] if type(head) is nn.Linear and "forward" not in head.__dict__ else []


def _logits(head: nn.Linear, x: Tensor) -> Tensor:
    """What the head computes; the largest weights of most models are read by the C form."""
    rows = x.reshape(-1, x.shape[-1])
    if head.bias is not None or torch.is_grad_enabled() or not linear.takes(rows, head.weight):
        return type(head).forward(head, x)
    return linear.operation()(rows, head.weight).view(*x.shape[:-1], -1)


def _attention(layer: nn.Module) -> LigerAttention | None:
    return next((x for x in layer.children() if isinstance(x, LigerAttention)), None)


def _fits(layer: nn.Module) -> bool:
    """A decoder layer with Liger attention that no other tool has changed."""
    if _attention(layer) is None or "forward" in layer.__dict__:
        return False
    return not any(hasattr(x, "base_layer") for x in layer.modules())  # adapters can be switched


def _on_cpu(model: nn.Module) -> bool:
    return all(x.device.type == "cpu" for x in model.parameters())


class _Steps:
    """The forward of one decoder layer, which takes single tokens through its graph."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.attention = layer, _attention(layer)
        self.reach = self.attention.window + self.attention.spec.sinks
        self.patience = 0  # steps with as many rows that are taken the plain way first
        self.taken: dict[int, int] = {}
        self.graphs: dict[tuple, tuple[Graph, bool] | None] = {}
        # where the weights stand: looked up in every step, so that new ones count at once
        self.slots = {
            f"{prefix}.{name}": (held, name)
            for prefix, module in layer.named_modules(prefix="layer")
            for held in (module._parameters, module._buffers)
            for name, weight in held.items()
            if weight is not None
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graphs": {}}  # of a copied or pickled model

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        entry = None if args else self._entry(hidden_states, kwargs)
        if entry is None or self._waits(len(hidden_states)):
            return type(self.layer).forward(self.layer, hidden_states, *args, **kwargs)
        # the graph writes in place, and knows one order in memory
        entry.keys, entry.values = entry.keys.contiguous(), entry.values.contiguous()
        states = {i: x for i, x in entry.recurrent_states.items() if x is not None}
        rotary = kwargs["position_embeddings"]  # a pair, or one for each kind of layer
        pairs = rotary if isinstance(rotary, tuple) else (x for p in rotary.values() for x in p)
        new = (x.contiguous() for x in (hidden_states, *pairs))
        inputs = (*new, entry.keys, entry.values, *states.values())
        weights = [held[name] for held, name in self.slots.values()]
        key = (hidden_states.dtype, *(x.shape for x in inputs))
        if key not in self.graphs:
            self.graphs[key] = self._made(weights, inputs, tree_structure(rotary), list(states))
        if self.graphs[key] is None:
            return type(self.layer).forward(self.layer, hidden_states, **kwargs)
        graph, single = self.graphs[key]
        out = graph(*weights, *inputs)
        entry.cumulative_length += 1
        return out[0] if single else tuple(out)

    def _waits(self, rows: int) -> bool:
        taken = self.taken.get(rows, 0)
        self.taken[rows] = taken + 1
        return taken < self.patience

    def _entry(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> Any:
        """The layer's entry of the cache, if this is a step that fits the graph."""
        if hidden_states.shape[1] > 1 or torch.is_grad_enabled() or self.layer.training:
            return None
        layout, cache = kwargs["layout"], kwargs.get("past_key_values")
        cache = kwargs.get("layer_past") if cache is None else cache  # as GPT-NeoX calls it
        if type(cache) is not DynamicCache or layout.mode != "liger" or layout.prefix is not None:
            return None
        entry = cache.layers[self.attention.layer_idx]
        full = entry.get_seq_length() >= self.reach and not entry.record_past
        return entry if full and layout.settled else None

    def _made(self, *what: Any) -> tuple[Graph, bool] | None:
        try:
            return self._graph(*what)
        except Exception as error:  # of tracer and compiler: there are too many kinds to name
            _report(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return None

    def _graph(
        self,
        weights: list[Tensor],
        inputs: tuple[Tensor, ...],
        rotary: TreeSpec,
        held: list[int],
    ) -> tuple[Graph, bool]:
        """The compiled graph, and whether the layer returns one tensor alone.

        - `rotary`: how the `position_embeddings` among the inputs are nested; `held`: which of the
          cache's states are there.
        """
        single: list[bool] = []
        names = list(self.slots)
        holder = nn.Module()
        holder.layer = self.layer
        holder.forward = lambda *a, **k: type(self.layer).forward(self.layer, *a, **k)

        def step(*flat: Tensor) -> list[Tensor]:
            given, (x, *more) = flat[: len(names)], flat[len(names) :]
            positions = tree_unflatten(more[: rotary.num_leaves], rotary)
            keys, values, *states = more[rotary.num_leaves :]
            entry = _Entry(keys, values, dict(zip(held, states, strict=True)), self.reach)
            layout = Layout("liger", self.reach, entry=entry)
            # where a layer drops keywords the layout travels as its mask, see `carry_layout`
            how = {"layout": layout, "attention_mask": layout, "position_embeddings": positions}
            out = functional_call(holder, dict(zip(names, given, strict=True)), (x,), how)
            single.append(isinstance(out, Tensor))
            return [out] if single[-1] else list(out)

        with torch.inference_mode(False), torch.no_grad():
            # what the graph moves on must not be a tensor of inference mode while it is traced
            moved = [torch.empty_like(x) for x in inputs]
            flat = [*weights, *moved]
            table = decompositions() if _on_cpu(self.layer) else {}
            graph = make_fx(step, decomposition_table=table, tracing_mode="fake")(*flat)
            key = (graph.code, *((x.shape, x.stride(), x.dtype, x.device) for x in flat))
            if any(node.op == "get_attr" for node in graph.graph.nodes):
                key = (*key, id(self))  # its constants are its own
            if key not in _compiled:
                _compiled[key] = _compile(graph, flat)
        return _compiled[key], single[-1]


def _compile(graph: nn.Module, flat: list[Tensor]) -> Graph:
    """The graph by torch's compiler.

    On the CPU without what torch puts around it for graphs in general, outputs that are inputs and
    gradients, which takes as long as some products of a small layer.
    """
    if flat[0].device.type != "cpu":
        return compile_fx(graph, flat)
    inner: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        inner.append(compile_fx_inner(*args, **kwargs))
        return inner[-1]

    with torch._functorch.config.patch(enable_autograd_cache=False):  # it would skip `keep`
        made = compile_fx(graph, flat, inner_compile=keep, config_patches={"cpp_wrapper": True})
    bare = getattr(inner[-1], "current_callable", None)
    return made if bare is None else lambda *flat: bare(list(flat))


@functools.cache
def _report(reason: str) -> None:
    _log.warning("no compiled step, going on without: %s", reason)


class _Entry:
    """A full window and the states behind it as an entry of a cache, moved on in place."""

    def __init__(self, keys: Tensor, values: Tensor, states: dict[int, Tensor], past: int) -> None:
        self.keys, self.values, self.recurrent_states = keys, values, states
        self.sliding_window, self.past = keys.shape[2] + 1, past
        self.is_recurrent_states_initialized = dict.fromkeys(states, True)
        self.has_previous_state = dict.fromkeys(states, True)

    def get_seq_length(self) -> int:
        return self.past

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        self.keys.copy_(keys[:, :, 1:])
        self.values.copy_(values[:, :, 1:])
        return keys, values

    def update_recurrent_state(self, state: Tensor, state_idx: int) -> None:
        self.recurrent_states[state_idx].copy_(state)
