"""Plots: drawn from the numbers given, comparable only where the units are."""

import re
from xml.etree import ElementTree

from linearize.eval import plots

LOSSES = {"teacher": 1.3, "window_only": 1.36, "window_only_trained": None, "before": 1.4}
RECORDS = [{"tokens": 100 * i, "loss": 2.0 / i} for i in range(1, 50)]


def words(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text") and e.text]


def test_text_stays_text_and_colours_are_the_pages():
    svg = plots.memory(25_000, 320)
    assert "KV cache of the base" in words(svg)
    assert "var(--student)" in svg
    assert "1,024" in words(svg)


def test_reference_lines_are_drawn_only_in_the_same_unit():
    assert "teacher 1.300" in words(plots.training(RECORDS, ["next_token"], LOSSES))
    distilled = words(plots.training(RECORDS, ["distill"], LOSSES))
    assert "teacher 1.300" not in distilled
    assert "objective: distill" in distilled
    held = words(plots.held_out([(0, 1.4), (4900, 1.31)], LOSSES))
    assert {"teacher 1.300", "window alone 1.360"} <= set(held)
    assert not any("trained" in w for w in held), "what was not measured is not drawn"


def test_the_window_is_marked_where_it_lies():
    curves = {"teacher": [2.0, 1.4, 1.2], "student": [2.0, 1.4, None]}
    marked = plots.by_position([0, 32, 128, 512], curves, 64)
    assert "window: 64" in " ".join(words(marked))
    assert "window: 600" not in " ".join(words(plots.by_position([0, 32, 128, 512], curves, 600)))


def test_mix_shows_every_head_with_layers_in_numeric_order():
    shown = words(plots.mix({str(layer): [layer / 10] * 4 for layer in (10, 9, 2)}))
    cells = [w for w in shown if re.fullmatch(r"\d\.\d\d", w)]
    assert cells == ["0.20"] * 4 + ["0.90"] * 4 + ["1.00"] * 4


def test_a_wide_mix_is_drawn_as_cells_with_a_scale_instead_of_numbers():
    svg = plots.mix({str(layer): [layer / 10] * 32 for layer in range(3)})
    assert svg.count("<path") > 3 * 32
    assert len(words(svg)) < 32


def test_an_all_zero_mix_is_drawn():
    assert words(plots.mix({"0": [0.0, 0.0]})).count("0.00") == 2


def test_small_weights_keep_their_digits():
    assert "0.0029" in words(plots.mix({"0": [0.0029, 0.0001]}))
    assert "0.34" in words(plots.mix({"0": [0.343, 0.0001]}))


def test_damage_is_a_bar_per_layer_and_kept_layers_stand_out():
    svg = plots.damage([(0, 0.1), (1, 0.4), (3, -0.01)], [1])
    assert "damage (nats/token)" in words(svg)
    assert svg.count("fill: var(--student)") == 2
    assert svg.count("fill: var(--teacher)") == 1
