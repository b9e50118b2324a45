"""`linearize inspect`: what would be converted, and what it would save."""

from __future__ import annotations

from typing import Any

from . import _options as options
from ._print import emit, facts, results_only, table


def inspect(
    model: options.Model,
    gate: options.Gate = None,
    window: options.Window = None,
    mix: options.Mix = None,
    keep_softmax: options.KeepSoftmax = None,
    every: options.Every = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Tell what would be converted in a model, how large its state is, and what is unsupported.

    Reads the configuration and the headers of the weight files, no weights.
    """
    from linearize import inspection
    from linearize.liger.spec import LigerSpec

    chosen = options.given(
        gate=gate, window=window, mix=mix, keep_softmax=keep_softmax or None, every=every
    )
    with results_only(json):
        found = inspection.inspect(
            model, LigerSpec(**chosen), revision=revision, trust_remote_code=trust_remote_code
        )
    if json:
        emit(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from linearize.figures import bytes_text

    model, spec = found["model"], found["spec"]
    rows = {
        "model": model["name"],
        "family": model["model_type"],
        "parameters": f"{model['parameters']:,} ({model['dtype']})",
        "context": f"{model['context']:,} tokens" if model["context"] else "not stated",
        "licence": model["license"] or "not stated",
        "can be converted": "yes" if found["convertible"] else "no: " + "; ".join(found["reasons"]),
    }
    if "layers" not in found:
        facts(rows)
        return
    layers, heads, state = found["layers"], found["heads"], found["state_bytes"]
    kept = layers["kept_softmax"]
    even = found["break_even_tokens"]
    rows |= {
        "layers": f"{len(layers['converted'])} become recurrent"
        + (f", {len(kept)} stay softmax ({', '.join(map(str, kept))})" if kept else ""),
        "heads": f"{heads['query']} query, {heads['key_value']} key/value, size {heads['size']}",
        "gate, window, mix": f"{spec['gate']}, {spec['window']} keys, {spec['mix']} "
        f"({found['added_parameters']:,} new parameters); gates: {', '.join(found['gates'])}",
        "state per sequence": f"{bytes_text(state['total'])}: recurrence "
        f"{bytes_text(state['recurrent'])}, window {bytes_text(state['window'])}",
        "KV cache of the base": f"{bytes_text(found['kv_bytes_per_token'])} per token",
        "smaller from": f"{even:,} tokens on"
        if even
        else "never: the base has a window of its own"
        if not kept or layers["converted"]
        else "never: no layer is converted",
    }
    facts(rows)
    table(
        "Cache of one sequence",
        ["tokens", "base", "converted", "saved"],
        [
            (
                f"{row['tokens']:,}",
                bytes_text(row["base_bytes"]),
                bytes_text(row["converted_bytes"]),
                f"{1 - row['converted_bytes'] / row['base_bytes']:.1%}",
            )
            for row in found["memory"]
        ],
    )
