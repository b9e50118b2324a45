"""The bench of looped samplers: its work is that of the samplers, its records are complete."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.diffusion_forcing import diffuse
from linearize.decoding.recurrent_depth.request import Request
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings
from linearize.eval.bench import __main__ as bench
from linearize.eval.bench import front, looped_shapes, recurrent_depth
from linearize.eval.bench.watched import Watched, bare

CPU = torch.device("cpu")
SMALL = ["--context", "8", "--tokens", "6", "--recurrences", "8", "--rounds", "1", "--threads", "1"]


@cache
def tiny() -> Any:
    return looped_shapes.build("tiny", CPU)


class Letters:
    """A tokenizer for the golden models, whose ids are ASCII codes."""

    def __call__(self, text: str, **how: Any) -> Any:
        return type("Encoded", (), {"input_ids": [b for b in text.encode() if b < 128]})


def test_a_shape_is_measured_without_text(tmp_path, capsys) -> None:
    file = tmp_path / "speed.json"
    asked = ["recurrent-depth", "--shape", "tiny", *SMALL, "--batches", "1", "2"]
    sweep = ["--inner", "4", "--settled", "4", "8", "--wavefronts", "16"]
    assert bench.main([*asked, *sweep, "--device", "cpu", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["machine"]["threads"] == 1
    records = written["records"]
    assert [(r["sampler"], r["batch"]) for r in records[:4]] == [
        ("autoregressive", 1),
        ("diffusion-forcing", 1),
        ("autoregressive", 2),
        ("diffusion-forcing", 2),
    ]
    assert [r["told"]["num_steps"] for r in records[4:]] == [4, 8]
    for record in records:
        assert not {"equal", "loss", "of_text"} & set(record), "random weights write no text"
        assert min(record[k] for k in ("seconds", "ratio", "cpu_ratio", "cache_bytes")) > 0
    for record in records[:4]:
        assert record["over_bare"] > 0.5
        assert record["cpu_over_bare"] > 0.5
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(records)
    plain, wave = records[:2]
    assert plain["core_passes"] == 6 * 8
    assert plain["cache_bytes"] == wave["cache_bytes"]


@pytest.mark.parametrize("settled", [4, 12])
def test_given_tokens_are_final_after_a_given_number_of_recurrences(settled: int) -> None:
    model = looped_shapes.Scripted(tiny())
    ids = looped_shapes.prompts(128, 2, 8)
    wave = WaveSettings(num_steps=settled, freeze="fixed")
    runs = [
        autoregressive(model, Request(ids, 12), num_steps=8, cache_budget=1),
        diffuse(model, Request(ids, 12), wave),
    ]
    expected = (torch.arange(8, 20) * 7 % 128).expand(2, -1)
    for run in runs:
        assert torch.equal(run.ids[:, 8:], expected)
    assert set(runs[1].spent.steps[0]) == {settled}
    assert max(runs[1].spent.widths[0]) == settled // 4


def test_watching_changes_nothing_and_the_bare_layers_do_the_same_passes() -> None:
    ids, wave = looped_shapes.prompts(128, 2, 8), WaveSettings(num_steps=8)
    watched = Watched(tiny())
    run = diffuse(watched, Request(ids, 8), wave)
    assert torch.equal(run.ids, diffuse(tiny(), Request(ids, 8), wave).ids)
    cores = [call for call in watched.calls if call.part == "core"]
    assert len(cores) == run.spent.core_passes - 4, "those before the wave are not among them"
    assert sum(call.tokens for call in cores) == run.spent.core_tokens - 4 * ids.numel()
    worked: list[int] = []
    hooks = [
        part[0].register_forward_hook(lambda module, given, out: worked.append(out.shape[1]))
        for part in (tiny().transformer.core_block, tiny().transformer.coda)
    ]
    with torch.inference_mode():
        bare(tiny(), watched.calls)()
    for hook in hooks:
        hook.remove()
    assert worked == [call.tokens for call in watched.calls if call.part != "prelude"]
    assert bare(object(), watched.calls) is None


def test_a_trained_model_is_compared_by_its_text(shared, tmp_path) -> None:
    import linearize

    model = linearize.load(shared / "golden" / "recurrent_depth" / "trained_242")
    held = tmp_path / "held.txt"
    held.write_text("c3:02,05,08,11,14,17,20\nr:abcdabcdabcdabcd\ns:ann sees the dog.\n" * 4)
    texts = recurrent_depth.texts(Letters(), 2, 36, held)
    assert texts.shape == (2, 36)
    records = list(
        recurrent_depth.run(
            model,
            texts,
            tokens=12,
            recurrences=12,
            batches=[1],
            inner=[4],
            thresholds=[0.03, 0.5],
            wavefronts=[16],
            rounds=1,
        )
    )
    names = [r["sampler"] for r in records[:4]]
    assert names == ["autoregressive", "diffusion-forcing", "adaptive", "self-speculative"]
    assert [r["told"]["exit_threshold"] for r in records[4:]] == [0.03, 0.5]
    plain, wave = records[:2]
    assert plain["equal"] == wave["equal"] == 1.0
    assert wave["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert 0 < plain["loss"] < 2
    assert wave["core_passes"] < plain["core_passes"] / 1.5
    drawn = tmp_path / "front.png"
    front.draw(records, drawn)
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1, 1.0), (2, 0.9), (3, 0.9), (4, 0.5), (3.5, 0.4)]
    assert front.pareto(points) == [(1, 1.0), (3, 0.9), (4, 0.5)]


def test_prompts_without_a_file_are_code_and_all_different() -> None:
    texts = recurrent_depth.texts(Letters(), 9, 40)
    assert texts.shape == (9, 40)
    assert len({tuple(row) for row in texts.tolist()}) == 9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shape", "tiny", "--tokens", "1"], "tokens=1"),
        (["--shape", "tiny", "--context", "600"], "context of 512"),
        (["--shape", "tiny", "--threads", "0"], "--threads 0"),
        (["--shape", "tiny", "--plot", "front.png"], "write none"),
        (["--model", "embedded"], "is not one"),
    ],
)
def test_mistakes_of_the_looped_bench_are_one_line(capsys, arguments, says) -> None:
    assert bench.main(["recurrent-depth", *arguments, "--device", "cpu"]) != 0
    assert says in capsys.readouterr().err


def test_a_short_text_is_refused(tmp_path) -> None:
    from linearize.errors import InputError

    short = tmp_path / "short.txt"
    short.write_text("abc")
    with pytest.raises(InputError, match="has 3 tokens and 2 pieces of 4"):
        recurrent_depth.texts(Letters(), 2, 4, short)
