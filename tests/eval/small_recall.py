"""Parameters that make recall tasks small."""

from __future__ import annotations

from typing import Any

from linearize.eval import tasks

RECALL = {
    "local_mqar": {"count": 8},
    "local_set_disjointness": {},
    "local_phonebook": {"count": 10},
    "local_passkey": {"length": 200},
    "local_copying": {"length": 16},
    "local_lookup": {},
    "local_niah_single_1": {"length": 400},
    "local_niah_multikey_2": {"length": 400},
    "local_niah_multikey_3": {"length": 400},
    "local_niah_single_2": {"length": 400},
    "local_niah_single_3": {"length": 400},
    "local_fda_like": {"words": 60, "attributes": 5},
    "local_swde_like": {"words": 60},
    "local_fda": {},
    "local_swde": {},
    "local_squad_completion": {},
    "local_drop": {},
    "local_fda_twice": {},
    "local_squad_completion_cue": {},
}


def small(name: str) -> dict[str, Any]:
    """Parameters of any recall task, with which it has few items, or short ones."""
    known = tasks.registry.parameters(name)
    return RECALL.get(name, {}) | ({"samples": 4} if "samples" in known else {})
