"""The Liger layer: the base's projections, a gated recurrence beside a softmax window, one mix.

y = o_proj(mix(recurrence, window)) with q, k, v from the pretrained projections; the recurrence
reads them before rotary embedding, the window after (Liger, arXiv 2503.01496, eq. 6 to 8).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .. import ops
from ..errors import UsageError
from ..ops import segments
from ..ops.softmax import attend
from . import gates, mixes, state
from .bases import Base
from .layout import Layout
from .prefix import PrefixEncoder
from .recurrence import recur
from .seen import Seen, look
from .spec import DELAYED, LigerSpec

ATTENTION = "linearize"  # name under which softmax attention and masks are registered


class LigerAttention(nn.Module):
    """What a base's attention class becomes; see `liger_class`.

    Adds no parameters but the mix and the encoder of a prefix, where the spec has them.
    """

    def start(self, base: Base, spec: LigerSpec) -> None:
        """Set up a module whose class has just been changed."""
        self.base = base
        self.spec = spec
        self.gate = gates.of(spec)
        # the base has learned nothing about keys that it never saw
        self.window = min(spec.window, self.own_window or spec.window)
        self.softcap = getattr(self.config, base.softcap) if base.softcap else None
        heads, mix = base.heads(self.config), mixes.of(spec)
        self.delayed, self.mass = spec.mix in DELAYED, mix.mass
        self.mix = mix.module and mix.module(heads.query, heads.size, spec)
        if spec.prefix == "jrt":
            self.prefix = PrefixEncoder(
                self.config.hidden_size, heads.key_value, heads.size, spec.prefix_rank
            )

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        layout: Layout,
        layer_past: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """[B, T, E] -> [B, T, E]; keywords as in the base's attention, plus the `layout`.

        `layer_past` is GPT-NeoX's name for `past_key_values`.
        """
        if layer_past is not None:
            past_key_values = layer_past
        if layout.mode == "softmax":
            if past_key_values is not None:
                raise UsageError(
                    "softmax mode has no cache in a converted model; call it with use_cache=False"
                )
            return super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=None,
                layout=layout,
                **kwargs,
            )
        q, k, v = self.base.project(self, hidden_states)
        entry = layout.entry
        if entry is None and past_key_values is not None:
            entry = past_key_values.layers[self.layer_idx]

        near = functools.partial(
            self._near, position_embeddings=position_embeddings, layout=layout, entry=entry
        )
        alone = entry is None and not self.delayed  # nobody else wants what the window sees
        if alone and torch.is_grad_enabled() and segments.pay(q.device):
            o = _made_again(lambda *x: near(*x)[0], q, k, v)
        else:
            o, seen = near(q, k, v)
        if self.mix is not None and layout.mode != "window":
            rows = tuple(map(layout.row, (q, k, v)))
            if self.delayed:
                rows = rows[0], *seen.left(rows[0].shape[1], self.window, self.spec.sinks)
            encoder = None if layout.prefix is None else self._encoder(hidden_states, q, k, v)
            recurrence = self._recurrence(rows, encoder, entry, layout)
            o = self.mix(recurrence.view(*q.shape[:-1], -1), o.float(), q)
        output = getattr(self, self.base.output)
        return output(o.flatten(2).to(hidden_states.dtype)), None

    def _encoder(
        self, hidden_states: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, ...]:
        """What the gate's op takes behind q, of the prefix encoder."""
        keys, values, share, weight = self.prefix(hidden_states)
        k, v = k.float() + keys, v.float() + values
        q = q if self.spec.gate_source == "query" else q[:, :0]  # the encoder reads nothing
        _, k, v, *more, g = self.gate.inputs(q, k, v, self.spec)
        return k, v * weight[:, None], *more, g * share[:, None]

    def _inputs(
        self, q: Tensor, k: Tensor, v: Tensor, there: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """What the gate's op is called with, from projections before rotary embedding.

        A delayed recurrence reads what it would have read a window earlier: every token writes the
        one that has just left its window, where there is one. Arguments that are all 0 write
        nothing.
        """
        q, k, v, *rest = self.gate.inputs(q, k, v, self.spec)
        if self.mass:
            v = torch.nn.functional.pad(v, (0, 1), value=1.0)
        if there is None:
            return q, k, v, *rest
        return q, *(x.where(there[:, :, None, None], x.new_zeros(())) for x in (k, v, *rest))

    def _recurrence(
        self,
        rows: tuple[Tensor, ...],
        encoder: tuple[Tensor, ...] | None,
        entry: CacheLayerMixin | None,
        layout: Layout,
    ) -> Tensor:
        """[B, T, H, V] float32 from arguments of `_inputs`; moves the entry's state on by T."""
        mask = None if layout.mask is None else layout.mask[:, layout.past :]
        count = len(self.gate.states)
        before = None if entry is None else state.read_state(entry, count)
        if encoder is not None:
            inputs = self._inputs(*rows)
            o, after = self.gate.prefix_op(*inputs, *encoder, prefix=layout.prefix, mask=mask)
        else:
            (*_, heads, K), V = rows[1].shape, rows[2].shape[-1] + self.mass
            shapes = self.gate.state_shapes(K, V, self.spec.slots)
            o, after = recur(
                self.gate.op,
                self._inputs,
                rows,
                states=tuple((heads, *shape) for shape in shapes),
                width=V,
                initial_state=before,
                mask=mask,
                cu_seqlens=layout.cu_seqlens,
            )
        if entry is not None:
            state.write_state(entry, after)
        return o

    def _near(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        layout: Layout,
        entry: CacheLayerMixin | None,
    ) -> tuple[Tensor, Seen]:
        """The window's output [B, T, H, V] in the model's dtype, and what it saw."""
        rotated, keys = self.base.rotate(self, q, k, position_embeddings)
        seen = look(
            keys,
            v,
            layout,
            entry,
            sinks=self.spec.sinks,
            first_state=len(self.gate.states),
            raw=k if self.delayed else None,
        )
        o = ops.window_attention(
            layout.row(rotated),
            seen.k,
            seen.v,
            window=self.window,
            mask=seen.mask,
            cu_seqlens=layout.cu_seqlens,
            scale=self.scaling,
            softcap=self.softcap,
            sinks=seen.sinks,
        )
        return o.view(*q.shape[:-1], -1), seen


def _made_again(near: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`near` of them, made again in the backward pass.

    The recurrence keeps queries and keys as they are: rotated ones need not be kept beside them.
    """
    whole = segments.Piece(slice(0, q.shape[1]), (slice(None),) * 3)

    def step(piece: segments.Piece, cut: tuple[Tensor, ...], _: tuple) -> tuple[Tensor, tuple]:
        return near(*cut), ()

    return segments.run(step, [whole], (q, k, v), (), (q.shape[2], v.shape[3]))[0]


@functools.cache
def liger_class(attention: type[nn.Module]) -> type[LigerAttention]:
    """The subclass of a base's attention class that computes the Liger layer.

    Changing the class of an existing module keeps its parameters, their names and the base's own
    forward, which stays reachable as the teacher.
    """
    return type(f"Liger{attention.__name__}", (LigerAttention, attention), {})


def softmax_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    layout: Layout,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Full softmax attention for kept layers and the teacher, as transformers calls it.

    `query` [B, H, T, D], `key` and `value` [B, Hk, keys, D] -> [B, T, H, D]. The base's own window
    is `module.own_window`: the one in the config is the converted layers'.
    """
    T, keys = query.shape[2], key.shape[2]
    visible = layout.softmax_mask(T, keys, module.own_window, query.device)
    if softcap is not None:
        if visible is None:
            visible = torch.ones(T, keys, dtype=torch.bool, device=query.device).tril()
        o = attend(query, key, value, visible, scale=scaling, softcap=softcap)
        return o.transpose(1, 2), None
    return sdpa_attention_forward(
        module, query, key, value, visible, dropout=dropout, scaling=scaling
    )


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Masks come from the layout; transformers need not build any."""


AttentionInterface.register(ATTENTION, softmax_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
