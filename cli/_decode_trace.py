"""`decode --trace`: the wave of the diffusion-forcing sampler as a picture."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from linearize.errors import UsageError

from ._decode_session import Session
from ._decode_settings import Settings


def traced(runs: dict[str, Settings], path: Path, *, alone: bool) -> dict[str, Settings]:
    """The one run, told to keep what it does.

    - `alone`: there is one prompt and one text.

    Raises `UsageError` for anything else, and what `trace.check` raises for the file.
    """
    if not alone:
        raise UsageError("--trace draws one text of one prompt; give --prompt and no --compare")
    settings = runs[""]
    if settings.sampler != "diffusion-forcing":
        raise UsageError(
            f"--trace draws a wave, and the sampler '{settings.sampler}' has none; add "
            "--sampler diffusion-forcing"
        )
    from linearize.decoding.recurrent_depth import trace

    trace.check(path)
    return {"": replace(settings, options={**settings.options, "trace": True})}


def draw(session: Session, result: Any, path: Path) -> None:
    """Write the picture and say so."""
    from linearize.decoding.recurrent_depth import trace

    trace.save(result.stats["trace"], path, word=lambda token: session.tokenizer.decode([token]))
    print(f"the wave over {result.stats['wave_steps']} steps is drawn in {path}", file=sys.stderr)
