"""Samplers for looped models: whole loops instead of one choice per token.

Importing this makes them rows of `sampling.SAMPLERS`.
"""

from . import diffusion_forcing, samplers

__all__ = ["diffusion_forcing", "samplers"]
