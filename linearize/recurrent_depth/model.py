"""The Huginn architecture (arXiv 2502.05171) under the published checkpoint's parameter names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from .block import Attention, BranchEnd, Norm, SandwichBlock
from .config import RavenConfig, check
from .interface import LoopFacts
from .looped import LoopedCausalLM
from .placement import Placement


class RavenForCausalLM(LoopedCausalLM):
    """e = prelude(embedding sqrt(h)); z = core(A [z; e]) r times; logits = head(n(coda(n(z))))."""

    config_class = RavenConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _packs = True
    _no_split_modules = ("SandwichBlock",)
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
    # A table of rotary angles, rounded where the file is bfloat16: computed in float32 instead.
    _keys_to_ignore_on_load_unexpected = (r"^freqs_cis$",)

    def __init__(self, config: RavenConfig) -> None:
        super().__init__(config)
        check(config)
        h = config.n_embd

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(SandwichBlock(config) for _ in range(count))

        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, h),
                "prelude": blocks(config.n_layers_in_prelude),
                "adapter": nn.Linear(2 * h, h, bias=False),
                "core_block": blocks(config.n_layers_in_recurrent_block),
                "coda": blocks(config.n_layers_in_coda),
                "ln_f": Norm(h, config.norm_eps),
            }
        )
        self.lm_head = nn.Linear(h, config.vocab_size, bias=False)
        self.post_init()

    @property
    def loop(self) -> LoopFacts:
        config = self.config
        return LoopFacts(
            vocab_size=config.vocab_size,
            width=config.n_embd,
            context=config.block_size,
            recurrences=config.mean_recurrence,
            prelude=config.n_layers_in_prelude,
            core=config.n_layers_in_recurrent_block,
            coda=config.n_layers_in_coda,
        )

    @property
    def backprop_depth(self) -> int:
        return self.config.mean_backprop_depth

    @property
    def state_std(self) -> float:
        return math.sqrt(2 / 5)

    def prelude(self, x: Tensor, place: Placement) -> Tensor:
        x = x * math.sqrt(self.config.n_embd)
        for i, block in enumerate(self.transformer.prelude):
            x = block(x, place, "prelude", i)
        return x

    def core(self, z: Tensor, e: Tensor, place: Placement, step: int) -> Tensor:
        x = self.transformer.adapter(torch.cat([z, e], -1))
        for i, block in enumerate(self.transformer.core_block):
            x = block(x, place, "core", i, step)
        return x

    def coda(self, z: Tensor, place: Placement, logits_to_keep: int = 0) -> Tensor:
        x = self.transformer.ln_f(z)
        for i, block in enumerate(self.transformer.coda):
            x = block(x, place, "coda", i)
        if logits_to_keep:
            x = place.spread(x, logits_to_keep)
        return self.lm_head(self.transformer.ln_f(x)).float()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = value

    def _init_weights(self, module: nn.Module) -> None:
        """Scaled initialisation (Takase et al., arXiv 2312.16903): small where branches end."""
        values = self.config.init_values
        if isinstance(module, nn.Linear):
            _normal(module.weight, values["out_proj" if isinstance(module, BranchEnd) else "std"])
        elif isinstance(module, nn.Embedding):
            _normal(module.weight, values["embedding"])
        elif isinstance(module, Norm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Attention) and module.qk_bias is not None:
            nn.init.zeros_(module.qk_bias)


def _normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


AutoConfig.register(RavenConfig.model_type, RavenConfig, exist_ok=True)
AutoModelForCausalLM.register(RavenConfig, RavenForCausalLM, exist_ok=True)
