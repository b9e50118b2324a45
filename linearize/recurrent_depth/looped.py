"""Prelude, looped core, coda: what every looped causal LM of transformers has in common.

A subclass supplies its layers (`prelude`, `core`, `coda`); it gets `forward`, `generate`, the
loss and the interface for samplers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from ..errors import UsageError
from ..stub import SavesStub
from .cache import RecurrentDepthCache
from .interface import LoopFacts
from .placement import Placement
from .recurrences import NumSteps, draw_recurrences, split_recurrences
from .sharing import Sharing


@dataclass
class LoopedOutput(ModelOutput):
    """- `loss`: mean next-token cross entropy, if labels were given.
    - `logits`: [B, T, V] float32.
    - `past_key_values`: the cache, if one is used.
    - `latent_state`: [B, T, h] after the last recurrence, before the final norm. (Not `state`:
      transformers takes that for a cache.)
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    latent_state: Tensor | None = None


class LoopedCausalLM(SavesStub, PreTrainedModel, GenerationMixin, ABC):
    """A causal LM whose middle layers are applied as often as one likes (`num_steps`)."""

    _supports_sdpa = True
    # Whether prelude, core and coda may get tokens packed into one row (see `Placement`), so that
    # places that are not used cost nothing: the case if nothing but attention looks across tokens.
    _packs = False

    # What a subclass supplies.

    @property
    @abstractmethod
    def loop(self) -> LoopFacts:
        """Sizes and habits of this model."""

    @property
    @abstractmethod
    def backprop_depth(self) -> int:
        """How many of the last recurrences carry gradient when only a total is given."""

    @property
    @abstractmethod
    def state_std(self) -> float:
        """Standard deviation of an untruncated initial state at scale 1."""

    @abstractmethod
    def prelude(self, x: Tensor, place: Placement) -> Tensor:
        """Token embeddings [B, W, h] -> e [B, W, h]."""

    @abstractmethod
    def core(self, z: Tensor, e: Tensor, place: Placement, step: int) -> Tensor:
        """One recurrence, [B, W, h] -> [B, W, h]."""

    @abstractmethod
    def coda(self, z: Tensor, place: Placement, logits_to_keep: int = 0) -> Tensor:
        """State [B, W, h] -> logits [B, W, V] float32, of the last columns if `logits_to_keep`."""

    # The interface for samplers: see interface.py.

    def new_cache(
        self, *, sharing: Sharing | str | int | None = None, max_length: int | None = None
    ) -> RecurrentDepthCache:
        """An empty cache for `generate`, `forward` and the interface; see `Sharing`."""
        facts = self.loop
        return RecurrentDepthCache(
            prelude=facts.prelude,
            core=facts.core,
            coda=facts.coda,
            sharing=sharing,
            max_length=max_length,
        )

    def initial_state(
        self,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """[*shape, h] of a normal distribution cut at three standard deviations.

        Draws and drops one normal tensor first, as the released code does: the same seed gives the
        same states. `scale` 0 gives zeros and draws nothing.
        """
        weight = self.get_input_embeddings().weight
        size, dtype = (*shape, self.loop.width), dtype or weight.dtype
        if scale == 0:
            return torch.zeros(size, dtype=dtype, device=weight.device)
        z = torch.randn(size, dtype=dtype, device=weight.device, generator=generator)
        width = math.sqrt(self.loop.width)  # cut before it is multiplied, with rounding in mind
        std = self.state_std * scale / width
        nn.init.trunc_normal_(z, std=std, a=-3 * std, b=3 * std, generator=generator)
        return z * width

    def embed(
        self, ids: Tensor, positions: Tensor, cache: RecurrentDepthCache | None = None
    ) -> Tensor:
        """The prelude: ids [B, W] -> e [B, W, h]. Adds the tokens to the cache."""
        place = self._at(positions, cache)
        x = self.get_input_embeddings()(place.pack(ids))
        return place.spread(self.prelude(x, place))

    def core_step(
        self,
        z: Tensor,
        e: Tensor,
        positions: Tensor,
        cache: RecurrentDepthCache | None = None,
        step: int = 0,
    ) -> Tensor:
        """One recurrence: z, e [B, W, h] -> z [B, W, h]."""
        place = self._at(positions, cache)
        return place.spread(self.core(place.pack(z), place.pack(e), place, step))

    def decode(
        self,
        z: Tensor,
        positions: Tensor,
        cache: RecurrentDepthCache | None = None,
        *,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """The coda and the head: z [B, W, h] -> logits [B, W, V] float32."""
        place = self._at(positions, cache)
        logits = self.coda(place.pack(z), place, logits_to_keep)
        return logits if logits_to_keep else place.spread(logits)

    def trim(self, cache: RecurrentDepthCache, length: int | Tensor) -> None:
        """Forget tokens at positions >= length (one number or [B])."""
        cache.trim(length)

    def _at(self, positions: Tensor, cache: RecurrentDepthCache | None) -> Placement:
        device = self.get_input_embeddings().weight.device  # `self.device` walks all parameters
        if cache is None:
            return Placement(positions.cpu(), device, packed=self._packs)
        return cache.place(positions, device=device, packed=self._packs)

    # transformers

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RecurrentDepthCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_steps: NumSteps | None = None,
        input_states: Tensor | None = None,
        init_scale: float | None = None,
        generator: torch.Generator | None = None,
        **kwargs,
    ) -> LoopedOutput:
        """Arguments beyond those of any causal LM of transformers:

        - `attention_mask`: [B, tokens so far], 1 = real token, on either side.
        - `position_ids`: [B or 1, T] for rotary embedding; positions that restart in a row mark
          documents packed in it, which then do not see each other (nothing is cached).
        - `num_steps`: recurrences: a total, whose last `backprop_depth` carry gradient, or a pair
          (without gradient, with). None: drawn at random in training mode, else the config's.
        - `input_states`: [B, T, h] to start from. Without it, `initial_state` with `init_scale`
          and `generator`; `init_scale` None is 1 in training mode, else 0: zeros, so that the
          same text gives the same result, alone or in a batch.

        Raises `UsageError` for recurrences out of range and for inputs that do not fit together.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UsageError("give input_ids or inputs_embeds, one of them")
        if num_steps is None and self.training:
            steps = draw_recurrences(
                self.loop.recurrences, self.backprop_depth, generator=generator
            )
        else:
            given = self.loop.recurrences if num_steps is None else num_steps
            steps = split_recurrences(given, self.backprop_depth)
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache_for(past_key_values, use_cache, position_ids, attention_mask)
        place = self._place(x.shape[:2], attention_mask, position_ids, cache)
        z = self._start(x, input_states, init_scale, generator)
        e = self.prelude(x, place)
        with torch.set_grad_enabled(False):
            for step in range(steps[0]):
                z = self.core(z, e, place, step)
        for step in range(steps[0], sum(steps)):
            z = self.core(z, e, place, step)
        logits = self.coda(z, place, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs
            )
        return LoopedOutput(loss=loss, logits=logits, past_key_values=cache, latent_state=z)

    def _start(
        self,
        x: Tensor,
        given: Tensor | None,
        scale: float | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        if given is None:
            scale = (1.0 if self.training else 0.0) if scale is None else scale
            return self.initial_state(x.shape[:2], scale=scale, generator=generator).to(x.dtype)
        if given.shape != x.shape:
            raise UsageError(
                f"input_states {tuple(given.shape)} must have the shape of the tokens' states, "
                f"{tuple(x.shape)}"
            )
        return given.to(x)

    def _cache_for(
        self,
        given: Cache | None,
        use_cache: bool | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
    ) -> RecurrentDepthCache | None:
        if given is not None and not isinstance(given, RecurrentDepthCache):
            raise UsageError(
                f"past_key_values is a {type(given).__name__}; a looped model needs a cache that "
                "knows its recurrences: model.new_cache(), or none and use_cache=True"
            )
        if given is not None or use_cache is False or self.training:
            return given
        if attention_mask is None and _restarts(position_ids) is not None:
            return None
        return self.new_cache() if use_cache or self.config.use_cache else None

    def _place(
        self,
        shape: tuple[int, int],
        mask: Tensor | None,
        position_ids: Tensor | None,
        cache: RecurrentDepthCache | None,
    ) -> Placement:
        B, T = shape
        past = 0 if cache is None else cache.get_seq_length()
        real = torch.ones(B, T, dtype=torch.bool)
        if mask is not None:
            if mask.ndim != 2 or mask.shape[1] < past + T:
                raise UsageError(
                    f"attention_mask {tuple(mask.shape)} must be [batch, tokens so far] = "
                    f"[{B}, {past + T}], 1 = real token: {past} are cached and {T} are new"
                )
            real = mask[:, past : past + T].bool().cpu().expand(B, T)
        before = cache.lengths[:, None] if past else 0
        where = (before + real.long().cumsum(1) - 1).where(real, torch.tensor(-1))
        if cache is None:
            documents = _restarts(position_ids) if mask is None else None
            return Placement(where, self.device, angles=position_ids, documents=documents)
        placed = cache.place(where, angles=position_ids, device=self.device)
        cache.count_columns(past + T)
        return placed

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args) -> None:
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        states, ids = inputs.get("input_states"), inputs["input_ids"]
        if states is not None and ids is not None and ids.shape[1] != states.shape[1]:
            del inputs["input_states"]  # they were the prompt's
        return inputs


def _restarts(position_ids: Tensor | None) -> Tensor | None:
    """[B or 1, T] number of each token's document, None when no row holds a second one."""
    if position_ids is None:
        return None
    starts = position_ids.diff(dim=1) != 1
    return nn.functional.pad(starts.long().cumsum(1), (1, 0)) if starts.any() else None
