"""Configuration of the Huginn architecture, with the field names of the published checkpoint."""

from __future__ import annotations

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..errors import InputError

# What the published model file implements; other values name variants that were never released.
_ONLY = {
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "injection_type": "linear",
    "state_init": "like-init",
    "bias": False,
}


@strict
class RavenConfig(PreTrainedConfig):
    """Prelude, looped core and coda of one block type (arXiv 2502.05171). Defaults: Huginn-0125.

    - `n_embd`, `n_heads`, `intermediate_size`: width h, heads (no groups), width of the gated MLP.
    - `n_layers_in_prelude`, `n_layers_in_recurrent_block`, `n_layers_in_coda`: physical blocks;
      `n_layers` is their sum.
    - `mean_recurrence`: recurrences when the caller gives none, and the mean of training's draw;
      `mean_backprop_depth`: how many of the last ones carry gradient.
    - `block_size`: context in tokens. `rope_base`, `norm_eps`, `qk_bias`: as in the checkpoint.
    - `tie_embeddings`: the head is the embedding; transformers' `tie_word_embeddings` reads it.
    """

    model_type = "huginn_raven"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012  as transformers declares it
        "num_attention_heads": "n_heads",
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "block_size",
        "tie_word_embeddings": "tie_embeddings",
    }

    n_embd: int = 5280
    n_heads: int = 55
    n_layers: int | None = None
    block_size: int = 4096
    vocab_size: int = 65536
    padding_multiple: int = 4096
    tie_embeddings: bool = True
    intermediate_size: int = 17920
    bias: bool = False
    norm_eps: float = 1e-6
    n_layers_in_prelude: int = 2
    n_layers_in_recurrent_block: int = 4
    n_layers_in_coda: int = 2
    mean_recurrence: int = 32
    mean_backprop_depth: int = 8
    qk_bias: bool = True
    rope_base: int | float = 50_000
    state_init: str = "like-init"
    injection_type: str = "linear"
    sampling_scheme: str = "poisson-lognormal-filling"
    nonlin_name: str = "SiLU"
    block_class_name: str = "SandwichBlock"
    norm_class_name: str = "RMSNorm_llama"
    mlp_class_name: str = "GatedMLP"
    init_strategy: str = "takase"
    init_values: dict | None = None
    effective_expected_depth: int | None = None
    use_cache: bool = True
    bos_token_id: int | None = 65504
    eos_token_id: int | list[int] | None = 65505
    pad_token_id: int | None = 65509

    def __post_init__(self, **kwargs) -> None:
        if self.n_layers is None:
            self.n_layers = self._blocks
        if self.effective_expected_depth is None:
            outside = self.n_layers_in_prelude + self.n_layers_in_coda
            looped = self.n_layers_in_recurrent_block * self.mean_recurrence
            self.effective_expected_depth = outside + looped
        if self.init_values is None:  # Takase et al., arXiv 2312.16903
            std = math.sqrt(2 / (5 * self.n_embd))
            self.init_values = {
                "std": std,
                "out_proj": std / math.sqrt(2 * self.effective_expected_depth),
                "embedding": std,
                "embed_scale": math.sqrt(self.n_embd),
            }
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if isinstance(value, int) and value >= self.vocab_size:
                setattr(self, name, None)  # Huginn's ids, in a model with a smaller vocabulary
        super().__post_init__(**kwargs)

    @property
    def _blocks(self) -> int:
        inside = self.n_layers_in_recurrent_block
        return self.n_layers_in_prelude + inside + self.n_layers_in_coda


def check(config: RavenConfig) -> None:
    """Raises `InputError` for a variant of the architecture that cannot be run."""
    for name, only in _ONLY.items():
        if (value := getattr(config, name)) != only:
            raise InputError(f"{name}={value!r} in the model's config: only {only!r} is supported")
    if config.n_layers != config._blocks:
        raise InputError(
            f"n_layers={config.n_layers} in the model's config, but prelude, core and coda have "
            f"{config._blocks} blocks together; correct one of them"
        )
    if config.n_layers_in_recurrent_block < 1:
        raise InputError("n_layers_in_recurrent_block=0: without a core there is nothing to loop")
    if config.n_embd % config.n_heads or config.n_embd // config.n_heads % 2:
        raise InputError(
            f"n_embd={config.n_embd} must be n_heads={config.n_heads} times an even head width"
        )
