"""Where the tokens of one pass stand, and what they see: made once, used by every layer.

A token sees the tokens of its row at positions up to its own. Position -1 marks an unused place:
it is computed and ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Placement:
    """Tokens that see each other only: no cache.

    - `where`: [B, W] int64 on the CPU, position of each token in its row, -1 = unused.
    - `angles`: [B or 1, W] positions for rotary embedding on `device`; None = `where`.
    - `documents`: [B or 1, W] on `device`; tokens of different documents do not see each other.
    - `packed`: where places are unused, the layers get the N tokens alone, as one row [1, N, ...]:
      `pack` and `spread` go between the two layouts, and only `attend` and `extend` work on rows.
    """

    def __init__(
        self,
        where: Tensor,
        device: torch.device,
        *,
        angles: Tensor | None = None,
        documents: Tensor | None = None,
        packed: bool = False,
    ) -> None:
        self.where = where
        self.width = where.shape[1]
        self.device = device
        self.documents = documents
        self.positions = where.clamp(min=0).to(device) if angles is None else angles
        self._used: Tensor | None = None  # [N] on `device`, places of the tokens, rows flattened
        if packed and angles is None:
            self._leave_out_unused()
        self._kept: dict[object, object] = {}

    def _leave_out_unused(self) -> None:
        used = self.where.flatten() >= 0
        count = int(used.sum())
        if not 0 < count < len(used):
            return
        self._used = used.nonzero()[:, 0].to(self.device)
        # of each place, which token it gets; an unused one gets any
        self._source = (used.cumsum(0) - 1).clamp(min=0).to(self.device)
        self.positions = self.pack(self.positions)

    def pack(self, x: Tensor) -> Tensor:
        """[B, W, ...] as the layers work on it: itself, or its tokens alone [1, N, ...]."""
        return x if self._used is None else x.flatten(0, 1).index_select(0, self._used)[None]

    def spread(self, x: Tensor, last: int = 0) -> Tensor:
        """What layers gave, as rows [B, W, ...]; unused places hold anything.

        - `last`: only so many columns from the right; 0 = all.
        """
        if self._used is None:
            return x[:, -last:]
        source = self._source.view(self.where.shape)[:, -last:]
        return x[0].index_select(0, source.flatten()).unflatten(0, source.shape)

    def once(self, name: object, make: Callable[[], object]) -> object:
        """`make()`, computed at the first call with this name."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def extend(
        self, k: Tensor, v: Tensor, part: str, layer: int, step: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and bias that these tokens see in one layer.

        - `k`, `v`: [B, W, Hk, D] of these tokens, rotated; [1, N, Hk, D] if they are packed.
        - `part`: "prelude", "core" or "coda"; `layer` counts inside it, `step` recurrences.

        Returns keys and values [B, n, Hk, D] and a bias [B or 1, 1, W, n], 0 or -inf, in k's
        dtype. Bias None: causal if there are several tokens, else everything is seen.
        """
        return self.spread(k), self.spread(v), self.bias(k.dtype)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        part: str,
        layer: int,
        step: int = 0,
        *,
        window: int | None = None,
    ) -> Tensor:
        """Softmax attention of q [B, W, H, D] over what `extend` returns -> [B, W, H, D].

        q, k, v and the result are [1, N, H, D] if the tokens are packed.
        - `window`: tokens that a token sees, itself included; None = all.
        """
        keys, values, bias = self.extend(k, v, part, layer, step)
        if window is not None and int(self.where.max()) >= window:
            near = self.once((window, k.dtype), lambda: additive(self._near(window), k.dtype))
            bias = near if bias is None else bias + near
        seen = F.scaled_dot_product_attention(
            self.spread(q).transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=bias,
            is_causal=bias is None and self.width > 1,
            enable_gqa=q.shape[2] != keys.shape[2],
        ).transpose(1, 2)
        return self.pack(seen)

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """What is seen as an additive bias; see `extend`."""
        return self.once(("bias", dtype), lambda: additive(self._visible(), dtype))

    def _near(self, window: int) -> Tensor:
        """[B, 1, W, n] bool: the last `window` tokens up to each one."""
        at = self.where.clamp(min=0)  # an unused place sees itself, or column 0
        back = (at[:, :, None] - self._keys_at()).to(self.device)
        return ((back >= 0) & (back < window))[:, None]

    def _keys_at(self) -> Tensor:
        """[B, 1, n] position of each key on the CPU."""
        return self.where.clamp(min=0)[:, None, :]

    def _visible(self) -> Tensor | None:
        """[B, 1, W, W] bool, None if plain causal."""
        in_order = bool((self.where[:, 0] >= 0).all() and (self.where.diff(dim=1) == 1).all())
        if in_order and self.documents is None:
            return None
        at = self.where.to(self.device)
        seen = (at[:, None, :] <= at[:, :, None]) & (at >= 0)[:, None, :]
        if self.documents is not None:
            seen = seen & (self.documents[:, :, None] == self.documents[:, None, :])
        # an unused place sees itself, so that no row is empty and nothing becomes NaN
        return (seen | torch.eye(self.width, dtype=torch.bool, device=self.device))[:, None]


def additive(visible: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """0 where visible, -inf elsewhere. On a CPU this is faster than a boolean mask."""
    if visible is None:
        return None
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))
