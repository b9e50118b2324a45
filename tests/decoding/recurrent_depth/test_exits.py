"""Exit criteria by their definitions, on numbers that can be checked by hand."""

import math

import pytest
import torch

from linearize.decoding.recurrent_depth.exits import EXITS, resolve
from linearize.errors import UsageError

REAL = torch.tensor([[True, True], [False, True]])  # the second row has padding


def logits(*probs):
    return torch.tensor(probs).log()


def test_states_are_averaged_over_real_tokens():
    before = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[9.0, 9.0], [1.0, 0.0]]])
    z = torch.tensor([[[3.0, 3.0], [0.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]])
    value, kept = EXITS["latent-diff"].look(z, before, REAL)
    first = 1 / math.sqrt(18)
    assert value.tolist() == pytest.approx([(first + 0.5) / 2, math.sqrt(2)])
    assert kept is z
    value, _ = EXITS["cosine"].look(z, before, REAL)
    assert value.tolist() == pytest.approx([(1 - 21 / (5 * math.sqrt(18))) / 2, 1.0], abs=1e-6)


def test_entropy():
    criterion = EXITS["entropy-diff"]
    value, kept = criterion.look(logits([0.5, 0.5], [1.0, 0.0]), None, REAL)
    assert value.isnan().all()
    value, _ = criterion.look(logits([1.0, 0.0], [0.5, 0.5]), kept, REAL)
    assert value.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)


def test_divergence_is_from_the_last_look():
    criterion = EXITS["kl"]
    value, kept = criterion.look(logits([0.75, 0.25]), None, REAL[:1])
    assert value.isnan().all()
    value, _ = criterion.look(logits([0.5, 0.5]), kept, REAL[:1])
    assert value.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])


def test_minp_divergence_ignores_what_is_unlikely():
    criterion = EXITS["minp-kl"]
    _, kept = criterion.look(logits([0.90, 0.06, 0.03, 0.01]), None, REAL[:1])
    cut = torch.tensor([0.9, 0.25, 0.25, 0.25])
    assert kept[0].tolist() == pytest.approx((cut / cut.sum()).tolist())
    value, _ = criterion.look(logits([0.90, 0.01, 0.03, 0.06]), kept, REAL[:1])
    assert value.item() == pytest.approx(0, abs=1e-6)


def test_stability_counts_unchanged_looks_of_each_row():
    criterion, kept, values = EXITS["argmax-stability"], None, []
    for best in [(0, 1), (0, 0), (0, 0), (1, 0)]:
        value, kept = criterion.look(torch.eye(2)[list(best)], kept, REAL)
        values.append(value.tolist())
    assert values == [[0, 0], [1, 0], [2, 1], [0, 2]]
    assert criterion.ends(5.0, 5)
    assert not criterion.ends(4.0, 5)


def test_no_criterion_ends_at_nan_and_none_never_ends():
    assert not any(c.ends(math.nan, c.auto) for c in EXITS.values())
    criterion, threshold = resolve("none", "auto")
    value, _ = criterion.look(torch.ones(1, 1, 2), torch.ones(1, 1, 2), REAL[:1, :1])
    assert not criterion.ends(value.item(), threshold)


def test_automatic_thresholds_are_the_released_ones():
    thresholds = {name: resolve(name, "auto")[1] for name in EXITS if name != "none"}
    assert thresholds == {
        "latent-diff": 0.03,
        "cosine": 1e-3,
        "entropy-diff": 1e-3,
        "kl": 1e-3,
        "minp-kl": 1e-5,
        "argmax-stability": 5,
    }


@pytest.mark.parametrize(
    ("name", "threshold", "message"),
    [
        ("latent", "auto", "no exit criterion 'latent'; did you mean 'latent-diff'"),
        ("kl", -1e-3, "out of range"),
        ("kl", math.nan, "out of range"),
        ("kl", True, "neither a number nor 'auto'"),
        ("kl", "tight", "neither a number nor 'auto'"),
        ("argmax-stability", 0, "out of range: a finite number from 1"),
    ],
)
def test_bad_criteria_and_thresholds(name, threshold, message):
    with pytest.raises(UsageError, match=message):
        resolve(name, threshold)
