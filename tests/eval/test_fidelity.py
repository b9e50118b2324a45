"""The fidelity table: its figures by their definitions, its rows, and going on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from linearize import pretrained, recipe
from linearize.errors import UsageError
from linearize.eval import fidelity
from linearize.training import packing
from linearize.training.evaluate import mean_loss
from linearize.training.packing import Rows


def small(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_figures_are_their_definitions() -> None:
    teacher, student, window = small(0), small(1), 5
    tokens = np.random.default_rng(0).integers(3, 50, 83).astype(np.int32)
    starts = np.array([0, 9, 31, 60])
    rows = Rows(tokens, starts, 16, True)
    worse, far, divergence, agree = [], [], [], []
    for row in range(len(rows)):
        batch = rows.batch([row])
        place = batch["position_ids"][0]
        for start in (place == 0).nonzero().flatten().tolist():
            end = start + 1
            while end < len(place) and place[end] == place[end - 1] + 1:
                end += 1
            alone = batch["input_ids"][:, start:end]
            t, s = (m(alone).logits[0].double().log_softmax(-1) for m in (teacher, student))
            for i, target in enumerate(batch["targets"][0, start:end].tolist()):
                if target < 0:
                    continue
                worse.append(t[i, target] - s[i, target])
                far += [worse[-1]] * (i >= window)
                divergence.append((t[i].exp() * (t[i] - s[i])).sum())
                agree.append(t[i].argmax() == s[i].argmax())
    found = fidelity.compare(teacher, student, rows, window, batch_size=2)
    expected = {
        "ratio": torch.stack(worse).mean().exp(),
        "beyond": torch.stack(far).mean().exp(),
        "kl": torch.stack(divergence).mean(),
        "agreement": torch.stack(agree).double().mean(),
    }
    assert found == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)
    same = fidelity.compare(teacher, teacher, rows, window)
    assert same == pytest.approx({"ratio": 1, "beyond": 1, "kl": 0, "agreement": 1}, abs=1e-6)


def test_every_row_is_a_recipe_with_a_folder_of_its_own(tmp_path: Path) -> None:
    rows = [*fidelity.main_rows(), *fidelity.factor_rows()]
    assert len({row.folder(16) for row in rows}) == len(rows)
    assert len({row.name for row in rows}) == len(rows), "--only takes one of them"
    common = ["base=m", "data.source=t", "liger.sinks=2"]
    specs = []
    for row in rows:
        made = fidelity.recipe_of(row, 16, common, tmp_path / "x", 1000)
        assert made.training.tokens == 1000
        assert made.base == "m"
        if row.recipe == fidelity.TUNED:
            assert made.training.objective == {"next_token": 1.0}
            continue
        spec = made.liger.spec()
        assert spec.window == 16
        fidelity.gates.of(spec)  # none asks for what its gate cannot do
        specs.append((spec, str(made.training.objective), str(made.stages)))
    assert len(set(specs)) > len(fidelity.gates.GATES) + 4


def test_what_is_done_stays_done(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = str(shared / "data" / "tinystories" / "valid.txt")
    model = str(shared / "data" / "models" / "stories260K")
    small = ["seq_len=64", "data.eval_tokens=500", "training.batch_size=2", "lora.rank=2"]
    command = [model, *small, "--data", text, "--out", str(tmp_path), "--window", "16"]
    command += ["--tokens", "300", "--small-tokens", "200", "--only", "teacher, fine-tuned"]
    command += ["--only", "window alone", "--only", "gate gsa"]
    assert fidelity.main(command) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "table.md").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["name"] for r in results] == ["teacher, fine-tuned", "window alone", "gate gsa"]
    for one in results:
        assert f"| {one['name']} | {one['tokens']:,} | {one['ratio']:.4f} |" in table
    data = recipe.load(str(tmp_path / "w16-window-alone" / "recipe.yaml")).data
    rows = packing.beginnings(data, pretrained.tokenizer(Path(model)))
    both = Path(model), tmp_path / "w16-window-alone"
    losses = [mean_loss(pretrained.load(m), rows, batch_size=8)[0] for m in both]
    assert results[1]["ratio"] == pytest.approx(math.exp(losses[1] - losses[0]), rel=1e-5)

    def refuse(*_, **__) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(fidelity.conversion, "convert", refuse)
    monkeypatch.setattr(fidelity.finetuning, "finetune", refuse)
    assert fidelity.main(command) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert fidelity.main([*command, "learning_rate=0.5"]) == UsageError.exit_code
    assert "made with another recipe" in capsys.readouterr().err
    assert fidelity.main([*command, "--only", "gate gsaa"]) == UsageError.exit_code


def test_a_row_that_does_not_exist_is_told_the_rows_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["m", "--data", "t", "--out", str(tmp_path), "--only"]
    assert fidelity.main([*command, "no row"]) == 2
    assert "known: as published, default, gate deltanet" in capsys.readouterr().err
    assert fidelity.main([*command, "mix jiont"]) == 2
    assert "did you mean 'mix joint'" in capsys.readouterr().err
