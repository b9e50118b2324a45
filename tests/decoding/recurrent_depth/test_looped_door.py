"""Looped samplers through `generate`, transformers' own `generate` and the command."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from linearize.cli import decode
from linearize.decoding import SAMPLERS, generate
from linearize.decoding.recurrent_depth.diffusion_forcing import diffuse
from linearize.decoding.recurrent_depth.freezing import RULES
from linearize.decoding.recurrent_depth.loop import Loop
from linearize.decoding.recurrent_depth.noise import SCHEDULES
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings
from linearize.errors import UsageError

PROMPTS = ["c3:02,05,08,11,", "s:ann sees "]
LOOPED = ["diffusion-forcing", "autoregressive", "adaptive", "self-speculative"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per ASCII character, as the golden models were trained."""
    words = Tokenizer(models.WordLevel({chr(i): i for i in range(128)}, unk_token="\0"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.fixture(scope="module")
def model(looped: Any) -> Any:
    return looped.model("trained_242")


def texts(results: list[Any]) -> list[str]:
    return [r.text for r in results]


@pytest.mark.parametrize("sampler", LOOPED)
def test_every_looped_sampler_says_what_greedy_says(
    model: Any, tokenizer: Any, sampler: str
) -> None:
    greedy = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    options = {"num_steps": 8}
    results = generate(
        model, tokenizer, PROMPTS, sampler=sampler, max_new_tokens=12, stop=["e "], **options
    )
    for own, plain in zip(results, greedy, strict=True):
        assert own.text == plain.text.split("e ")[0]
        assert own.finish_reason == ("stop" if "e " in plain.text else "length")
        assert own.stats["core_passes"] > 0
    assert not greedy[0].stats


def test_frozen_tokens_are_streamed(model: Any, tokenizer: Any) -> None:
    pieces: list[str] = []
    (result,) = generate(
        model,
        tokenizer,
        PROMPTS[0],
        sampler="diffusion-forcing",
        num_steps=8,
        max_new_tokens=16,
        on_text=pieces.append,
    )
    assert "".join(pieces) == result.text
    assert len(pieces) > 8


@pytest.mark.parametrize(
    "remedies",
    [
        {"dry": {"allowed_length": 1}},
        {"repetition-penalty": {"penalty": 1.4, "scope": "all"}, "no-repeat-ngram": {"size": 3}},
        {"ditto-cap": {}},
    ],
    ids=str,
)
def test_remedies_act_as_in_plain_decoding(model: Any, tokenizer: Any, remedies: Any) -> None:
    """Text and what is told of it: every final token once, no draft."""

    def run(**how: Any) -> tuple[list[str], dict[int, list[Any]]]:
        heard: dict[int, list[Any]] = {0: [], 1: []}
        results = generate(
            model,
            tokenizer,
            PROMPTS,
            remedies=remedies,
            max_new_tokens=20,
            on_penalty=lambda prompt, penalty: heard[prompt].append(
                (penalty.remedy, penalty.position, penalty.tokens, penalty.now)
            ),
            **how,
        )
        return texts(results), heard

    plain = run(sampler="autoregressive", num_steps=8)
    assert run(sampler="diffusion-forcing", num_steps=8, verify=True, verify_every=6) == plain
    text, _ = run(sampler="diffusion-forcing", num_steps=8, exit_threshold=1e-3)
    assert text == plain[0]


def test_the_same_seed_draws_the_same_text_as_plain_sampling(model: Any, tokenizer: Any) -> None:
    chance = {"temperature": 0.9, "top_p": 0.95, "seed": 3, "num_return": 2, "max_new_tokens": 16}
    plain = generate(model, tokenizer, PROMPTS, sampler="sample", **chance)
    wave = {"sampler": "diffusion-forcing", "num_steps": 8, "verify": True}
    assert texts(generate(model, tokenizer, PROMPTS, **wave, **chance)) == texts(plain)
    assert len(set(texts(plain)[:2])) == 2


def test_nan_keeps_what_came_before(model: Any, tokenizer: Any) -> None:
    broken = deepcopy(model)
    broken.transformer["adapter"].weight.data.fill_(float("nan"))
    (result,) = generate(broken, tokenizer, PROMPTS[0], sampler="diffusion-forcing")
    assert result.finish_reason == "nan"
    assert result.ids == []


def test_a_model_that_is_not_looped_is_told_what_fits(shared: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(shared / "data" / "models" / "stories260K")
    for sampler in LOOPED:
        assert sampler in SAMPLERS
        with pytest.raises(UsageError, match="samplers that fit it: greedy, sample, beam"):
            generate(plain, None, "x", sampler=sampler)


def test_inside_anybodys_generate(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
    loop = Loop(partial(diffuse, settings=WaveSettings(num_steps=8)), name="diffusion-forcing")
    out = model.generate(ids, custom_generate=loop, max_new_tokens=12, do_sample=False)
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert out.tolist() == plain.tolist()
    assert loop.stats[0]["core_passes"] < 12 * 8


@pytest.fixture
def command(
    looped: Any,
    tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Run `decode MODEL -p PROMPT ARGS`; returns exit code, stdout, stderr."""
    folder = tmp_path / "model"
    shutil.copytree(looped.folder / "trained_242", folder, ignore=lambda *_: [])
    folder.chmod(0o755)
    tokenizer.save_pretrained(folder)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        line = ["decode", folder, "-p", PROMPTS[0], "-n", "12", *arguments]
        monkeypatch.setattr(sys, "argv", [str(part) for part in line])
        with pytest.raises(SystemExit) as ended:
            decode.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_the_command_draws_the_wave(command: Any, tmp_path: Path) -> None:
    wave = ("--sampler", "diffusion-forcing", "--option", "diffusion-forcing.num_steps=8")
    html, png = tmp_path / "wave.html", tmp_path / "wave.png"
    code, out, err = command(*wave, "--trace", html)
    assert (code, out) == (0, "14,17,20,23,\n")
    assert "drawn in" in err
    assert html.read_text().count("<rect") > 12
    assert "recurrences, final" in html.read_text()
    code, out, _ = command(*wave, "--trace", png, "--json")
    assert png.read_bytes().startswith(b"\x89PNG")
    stats = json.loads(out)["stats"]
    assert stats["core_passes"] == 4 + 4 * stats["wave_steps"], "4 before the wave begins"
    assert "trace" not in stats


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "wave.html"], "the sampler 'greedy' has none"),
        (["--sampler", "diffusion-forcing", "--trace", "wave.txt"], ".png or .html"),
        (["--trace", "w.png", "--compare", "greedy,diffusion-forcing"], "one text of one prompt"),
        (["--sampler", "diffusion-forcing", "--top-k", "5"], "nothing is drawn at temperature 0"),
        (["--sampler", "diffusion-forcin"], "did you mean 'diffusion-forcing'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_command_says_what_does_not_fit(
    command: Any, arguments: list[str], message: str
) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert message in " ".join(err.split())


def test_every_option_is_in_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "samplers.md").read_text()
    table = page.partition("\n| option |")[2].partition("\n\n")[0]
    shared = page.partition("All four take")[2].partition("\n\n")[0]
    for name, option in inspect.signature(SAMPLERS["diffusion-forcing"]).parameters.items():
        assert f"`{name}`" in table + shared
        if row := re.search(rf"^\| `{name}` \|.*\| (.*) \|$", table, re.MULTILINE):
            told = row[1].strip("`")
            assert told in {str(option.default), "the model's", "0", "linear"}
    for rule in [*RULES, *SCHEDULES]:
        assert f"`{rule}`" in table
