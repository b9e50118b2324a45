"""DITTO's loss and rows, and unlikelihood, against the published code and their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from linearize.errors import UsageError
from linearize.recipe import RepetitionSettings
from linearize.training import ditto, objectives
from linearize.training.objectives import OBJECTIVES, Forward
from linearize.training.pseudo_repetition import previous_copies, released

PUBLISHED = 1e-20  # floor of the published code


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "golden" / "anti_repetition"


def previous_of(case: dict, length: int) -> torch.Tensor:
    lengths = zip(case["prefix_len"], case["sentence_len"], strict=True)
    return torch.stack([torch.from_numpy(previous_copies(p, u, length)) for p, u in lengths])


def forward(logits, batch, **settings):
    step = Forward(torch.nn.Identity(), batch, repetition=RepetitionSettings(**settings))
    step.__dict__["logits"] = logits
    return step


def test_the_published_construction(folder: Path) -> None:
    for case in json.loads((folder / "ditto_construction.json").read_text()):
        draws = iter(case["draws"])

        def draw(low, high, draws=draws):
            given = next(draws)
            assert (given["low"], given["high"]) == (low, high)
            return given["value"]

        found = released(case["src_tokens"], case["end_token"], draw)
        wanted = case["result"]
        assert (found is None) == (wanted is None)
        if wanted is None:
            continue
        assert [row[:-1].tolist() for row, _ in found] == wanted["input"]
        assert [row[1:].tolist() for row, _ in found] == wanted["target"]
        length = len(case["src_tokens"][0])
        for index, (_, (prefix, unit, end)) in enumerate(found):
            assert unit - prefix == wanted["prefix_len"][index]
            assert end - unit == wanted["sentence_len"][index]
            full, rest = divmod(length - (unit - prefix), end - unit)
            assert [full, rest] == [wanted[k][index] for k in ("full_repeats", "remainder")]
            penalised = (previous_copies(unit - prefix, end - unit, length) >= 0).sum()
            assert penalised == (end - unit) * (full - 1) + rest


def test_the_published_loss_and_gradient(folder: Path) -> None:
    tensors = load_file(folder / "ditto_loss.safetensors")
    cases = json.loads((folder / "ditto_loss.json").read_text())
    assert {case["loss_type"] for case in cases} == set(ditto.KINDS)
    for case in cases:
        name, kind, penalty = f"c{case['case']}", case["loss_type"], case["penalty"]
        logits = tensors[f"{name}.logits"].requires_grad_()
        logits.grad = None
        targets = tensors[f"{name}.target"]
        previous = previous_of(case, case["length"])
        assert torch.equal(previous >= 0, tensors[f"{name}.mask"].bool())
        assert ditto.terms(previous) == case["normaliser"]
        log_probs = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
        torch.testing.assert_close(log_probs.exp(), tensors[f"{name}.target_probs"])
        torch.testing.assert_close(
            ditto.previous_copy(log_probs.exp(), previous), tensors[f"{name}.previous_copy_probs"]
        )
        loss = ditto.loss(log_probs, previous, penalty=penalty, kind=kind, floor=PUBLISHED)
        loss.backward()
        assert loss.item() == pytest.approx(case["loss_sum"], rel=1e-5, abs=1e-6)
        assert logits.grad.norm().item() == pytest.approx(case["grad_norm_of_sum"], rel=1e-5)
        if f"{name}.{kind}.{penalty}.grad" in tensors:
            wanted = tensors[f"{name}.{kind}.{penalty}.grad"]
            torch.testing.assert_close(logits.grad, wanted, rtol=1e-5, atol=1e-6)
        objective = OBJECTIVES["ditto"](
            forward(
                logits.detach(),
                {"targets": targets, "previous": previous},
                penalty=penalty,
                loss=kind,
            )
        )
        assert objective.item() == pytest.approx(case["loss_sum"] / case["normaliser"], rel=1e-4)


def test_the_published_loss_of_a_model(folder: Path) -> None:
    golden = json.loads((folder / "ditto_model.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny_llama").eval()
    for case in golden["results"]:
        draws = iter(case["draws"])
        found = released(golden["rows"], golden["end_token"], lambda *_, d=draws: next(d))
        rows = torch.stack([torch.from_numpy(row) for row, _ in found])
        length = rows.shape[1] - 1
        assert rows[:, :-1].tolist() == golden["constructed"]
        assert rows[:, 1:].tolist() == golden["target"]
        spans = (span for _, span in found)
        previous = [previous_copies(u - p, e - u, length) for p, u, e in spans]
        batch = {
            "input_ids": rows[:, :-1],
            "targets": rows[:, 1:],
            "previous": torch.stack([torch.from_numpy(p) for p in previous]),
        }
        settings = RepetitionSettings(penalty=case["penalty"], loss=case["loss_type"])
        model.zero_grad()
        loss = OBJECTIVES["ditto"](Forward(model, batch, repetition=settings))
        loss.backward()
        assert loss.item() * case["normaliser"] == pytest.approx(case["loss_sum"], rel=1e-4)
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
        assert norm == pytest.approx(case["param_grad_norm_per_token"], rel=1e-3)
        head = model.lm_head.weight.grad.norm().item()
        assert head == pytest.approx(case["head_grad_norm"], rel=1e-3)
        words = model.get_input_embeddings().weight.grad.norm().item()
        assert words == pytest.approx(case["embed_grad_norm"], rel=1e-3)


def test_saturated_probabilities_have_a_finite_loss() -> None:
    """A certain copy of an impossible one: |p - lambda q| is 1 in float32."""
    log_probs = torch.tensor([[-200.0, 0.0]], requires_grad=True)
    loss = ditto.loss(log_probs, torch.tensor([[-1, 0]]), penalty=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(13.8155, abs=1e-3)
    assert log_probs.grad.isfinite().all()


@pytest.mark.parametrize("elements", [2**24, 350, 1])
@pytest.mark.parametrize("name", ["ditto", "unlikelihood"])
def test_chunks_change_neither_value_nor_gradient_of_these(name, elements, monkeypatch):
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (3, 12))
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:].clone()}
    if name == "ditto":
        batch["previous"] = torch.from_numpy(previous_copies(2, 3, 11)).expand(3, 11)
    else:
        batch["targets"][1, 4] = -100
    logits = 4 * torch.randn(3, 11, 50)

    def run():
        given = logits.clone().requires_grad_()
        value = OBJECTIVES[name](forward(given, batch))
        value.backward()
        return value.detach(), given.grad

    expected = run()
    assert expected[1].any()
    monkeypatch.setattr(objectives, "_CHUNK_ELEMENTS", elements)
    torch.testing.assert_close(run(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_unlikelihood_is_its_definition(packed: bool) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (2, 8))
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    batch = {"input_ids": ids, "targets": targets}
    begins = [0] * 8
    if packed:
        batch["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]] * 2)
        begins = [0, 0, 0, 3, 3, 3, 3, 3]
        targets[:, 2] = -100
    logits = torch.randn(2, 8, 9)
    wanted, count = 0.0, 0
    for row in range(2):
        for place in range(8):
            target = targets[row, place].item()
            if target == -100:
                continue
            count += 1
            seen = set(ids[row, begins[place] : place + 1].tolist()) - {target}
            p = logits[row, place].softmax(-1)
            wanted -= sum((1 - p[token]).log().item() for token in seen)
    found = OBJECTIVES["unlikelihood"](forward(logits, batch))
    assert found.item() == pytest.approx(wanted / count, rel=1e-5)


def test_objectives_apply_to_rows_of_their_kind() -> None:
    ids = torch.randint(0, 9, (1, 12))
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
    logits = torch.randn(1, 11, 9)
    weights = {"next_token": 1.0, "ditto": 2.0}
    assert objectives.total(forward(logits, batch), weights)[1].keys() == {"next_token"}
    batch["previous"] = torch.from_numpy(previous_copies(2, 3, 11))[None]
    loss, values = objectives.total(forward(logits, batch), weights)
    assert values.keys() == {"ditto"}
    assert loss.item() == pytest.approx(2 * values["ditto"].item())


def test_repeated_rows_alone_need_every_step() -> None:
    with pytest.raises(UsageError, match=r"share of 0.5 .* add next_token"):
        objectives.check({"ditto": 1.0}, share=0.5)
    objectives.check({"ditto": 1.0}, share=1.0)
    objectives.check({"ditto": 1.0, "next_token": 1.0}, share=0.5)
