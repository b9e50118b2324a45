"""`linearize gates`: the gate families there are."""

from __future__ import annotations

from . import _options as options
from ._print import emit, results_only, table


def gates(json: options.Json = False) -> None:
    """List the gate families: state, normalizer, source and formula.

    States are per key/value head: K key size, V value size, M slots (liger.slots).

    p is the gate's logit, pooled from the pretrained key (or liger.gate_source), n the normalizer.

    Installed packages that bring families are listed too.
    """
    from linearize.liger import gates as registry

    with results_only(json):
        registry.load_extensions()
    found = [
        {
            "name": gate.name,
            "state": " + ".join(" ".join(axes) for axes in gate.states),
            "logits": gate.logits,
            "normalizer": gate.normalizer,
            "source": gate.source,
            "formula": gate.formula,
            "no_prefix": gate.no_prefix,
        }
        for gate in registry.GATES.values()
    ]
    if json:
        emit(found)
        return
    table(
        "Gate families",
        ["gate", "state", "n", "source", "formula"],
        [
            (
                row["name"],
                row["state"],
                "" if row["normalizer"] is None else f"{row['normalizer']:g}",
                row["source"],
                row["formula"],
            )
            for row in found
        ],
        words=["state", "source", "formula"],
    )
