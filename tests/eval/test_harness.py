"""The plugin inside the harness: its scores, its tasks, its record, what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_recall import small
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import linearize
from linearize import pretrained
from linearize.errors import InputError, UsageError
from linearize.eval.alone import alone
from linearize.eval.harness import evaluate
from linearize.eval.tasks import TASKS

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
# lm-eval and what it imports warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

LIKELIHOOD = [f"local_{name}" for name in ("arc_easy", "arc_challenge", "hellaswag", "piqa")]
LIKELIHOOD += [f"local_{name}" for name in ("winogrande", "lambada", "wikitext")]
CODE = ["local_humaneval", "local_mbpp"]


@pytest.fixture(scope="module")
def words() -> Any:
    return AutoTokenizer.from_pretrained(pretrained.locate("embedded"))


@pytest.fixture(scope="module")
def llama(words: Any) -> LlamaForCausalLM:
    """Random, with weights large enough that scores differ."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


def _run(model: Any, data: Path, names: list[str], **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    from linearize.eval.harness.task_manager import Tasks

    recall = set(TASKS) - {*LIKELIHOOD, *CODE, "local_gsm8k"}
    words = getattr(model, "tokenizer", None)
    manager = Tasks(
        include_defaults=False,
        data_dir=data,
        parameters={name: small(name) for name in recall},
        tokenizer=lambda: words,
    )
    return simple_evaluate(
        model,
        tasks=[manager._load_spec(name) for name in names],
        task_manager=manager,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        gen_kwargs={"max_gen_toks": 8},
        limit=4,
        **options,
    )


def test_scores_are_those_of_the_harness(llama: Any, words: Any, data: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from linearize.eval.harness.model import Linearize

    names = list(TASKS)
    theirs = _run(HFLM(llama, tokenizer=words, batch_size=1), data, names)
    runs = {
        "1": Linearize(llama, tokenizer=words, batch_size=1),
        "16": Linearize(llama, tokenizer=words, batch_size=16),
        "alone": Linearize(llama, tokenizer=words, batch_size=16, prefix_reuse=False),
    }
    for which, lm in runs.items():
        ours = _run(lm, data, names)
        for name in names:
            pairs = zip(theirs["samples"][name], ours["samples"][name], strict=True)
            for wanted, found in pairs:
                assert found["arguments"] == wanted["arguments"]
                for (a,), (b,) in zip(wanted["resps"], found["resps"], strict=True):
                    if isinstance(a, tuple):
                        assert b == (pytest.approx(a[0], abs=1e-3), a[1]), (which, name)
                    else:
                        assert b == (a if isinstance(a, str) else pytest.approx(a, rel=1e-5))
            for key, value in theirs["results"][name].items():
                if not isinstance(value, str):
                    assert ours["results"][name][key] == pytest.approx(value, rel=1e-4), key
    assert ours["config"]["model_type"] == "llama"
    assert ours["config"]["inputs_cut"] > 0


def test_shared_beginnings_change_no_score_of_a_converted_model(
    llama: Any, words: Any, data: Path
) -> None:
    from linearize.eval.harness.model import Linearize

    copy = LlamaForCausalLM(llama.config)
    copy.load_state_dict(llama.state_dict())
    model = linearize.apply(copy, linearize.LigerSpec(window=8, mix="fixed"))
    apart, shared = (
        _run(
            Linearize(model, tokenizer=words, batch_size=16, prefix_reuse=reuse),
            data,
            LIKELIHOOD,
            num_fewshot=2,
        )
        for reuse in (False, True)
    )
    for name in LIKELIHOOD:
        for a, b in zip(apart["samples"][name], shared["samples"][name], strict=True):
            for (one,), (other,) in zip(a["resps"], b["resps"], strict=True):
                wanted = (
                    (pytest.approx(one[0], abs=1e-3), one[1])
                    if isinstance(one, tuple)
                    else (pytest.approx(one, rel=1e-5))
                )
                assert other == wanted, name


def test_an_evaluation_goes_on_where_it_was_ended(
    llama: Any, words: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linearize.eval.harness import responses, scoring

    options = {"data_dir": data, "out": tmp_path / "out", "bootstrap_iters": 0}
    arguments = {"tokenizer": words, "batch_size": 4}
    names = ["local_piqa", "local_lambada"]
    add, batches = responses.Responses.add, []

    def interrupted(*given: Any) -> Any:
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return add(*given)

    monkeypatch.setattr(responses.Responses, "add", interrupted)
    with pytest.raises(linearize.errors.Interrupted, match="the same command goes on"):
        evaluate(llama, names, model_args=arguments, **options)
    file = tmp_path / "out" / "responses.jsonl"
    done = file.read_bytes()
    file.write_bytes(done + b'{"key": "torn')
    whole = evaluate(llama, names, model_args=arguments, **options)
    assert file.read_bytes().startswith(done)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}), "nothing was computed twice"

    monkeypatch.setattr(scoring.Scorer, "_read", lambda *given: pytest.fail("computed again"))
    again = evaluate(llama, names, model_args=arguments, **options)
    assert again["results"] == whole["results"]
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    about = saved["linearize"]
    assert about["versions"]["lm_eval"] == lm_eval.__version__
    assert len(about["hash"]) == 64
    assert about["sampler"] == "as the task says"
    assert saved["results"]["local_piqa"]["acc,none"] == whole["results"]["local_piqa"]["acc,none"]
    with pytest.raises(pytest.fail.Exception, match="computed again"):  # another setting
        evaluate(llama, names, model_args={**arguments, "max_length": 100}, **options)
    with alone(tmp_path / "out"), pytest.raises(UsageError, match="another evaluation is writing"):
        evaluate(llama, names, model_args=arguments, **options)
    file.write_text("{broken\n")
    with pytest.raises(InputError, match=r"responses\.jsonl line 1 is damaged"):
        evaluate(llama, names, model_args=arguments, **options)


def test_a_tokenizer_of_another_model_is_named(words: Any, data: Path) -> None:
    few = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_attention_heads=1)
    with pytest.raises(InputError, match="and the model knows 20; it is not the model's"):
        evaluate(
            LlamaForCausalLM(few),
            ["local_piqa"],
            data_dir=data,
            model_args={"tokenizer": words},
            limit=1,
        )


def test_generation_with_samplers(llama: Any, words: Any) -> None:
    from linearize.eval.harness.model import Linearize

    def written(repeats: int = 1, given: dict[str, Any] | None = None, **options: Any) -> list[str]:
        lm = Linearize(llama, tokenizer=words, batch_size=4, **options)
        asked = {"until": ["\n"], "max_gen_toks": 12, **(given or {})}
        return lm.generate_until([SimpleNamespace(args=("Once upon", asked))] * repeats)

    greedy = written()
    assert written(sampler="greedy") == greedy
    assert written(sampler="beam", num_beams=3) == written(given={"num_beams": 3})
    drawn = written(3, sampler="sample", temperature=1.5, seed=3)
    assert len(set(drawn)) == 3, "repeats of a request draw anew"
    assert (
        written(3, sampler="sample+dry", temperature=1.5, seed=3, **{"dry.multiplier": 0}) == drawn
    )
    assert written(3, given={"do_sample": True, "temperature": 1.5}, seed=3) == drawn
    for wrong, says in {
        "rgp": "did you mean 'rpg'",
        "greedy+sample": "names 2 samplers",
        "adaptive": "looped model",
    }.items():
        with pytest.raises(UsageError, match=says):
            written(sampler=wrong)
    with pytest.raises(UsageError, match=r"'tempature' is not known.*'temperature'"):
        written(sampler="sample", tempature=2)


def test_lengths(llama: Any, words: Any, caplog: pytest.LogCaptureFixture) -> None:
    from linearize.eval.harness.model import Linearize

    copy = LlamaForCausalLM(llama.config)
    copy.load_state_dict(llama.state_dict())
    converted = linearize.apply(copy, linearize.LigerSpec(window=8, mix="fixed"))
    text = "one two three four five six seven eight nine ten " * 30
    request = [SimpleNamespace(args=(text,))]

    def perplexity(model: Any, **options: Any) -> tuple[float, Any]:
        lm = Linearize(model, tokenizer=words, **options)
        return lm.loglikelihood_rolling(request)[0], lm

    whole, lm = perplexity(converted)
    assert lm.max_length is None
    ids = torch.tensor([[lm.prefix_token_id, *lm.tok_encode(text)]])
    with torch.no_grad():
        logp = converted(ids[:, :-1]).logits[0].log_softmax(-1)
    assert whole == pytest.approx(logp.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-4)
    assert perplexity(llama)[1].max_length == 512
    windows, _ = perplexity(converted, max_length=16)
    assert windows != pytest.approx(whole, rel=1e-4)

    lm = Linearize(converted, tokenizer=words, max_length=16)
    pair = [SimpleNamespace(args=(text, " end"))]
    with caplog.at_level(logging.WARNING):
        cut = lm.loglikelihood(pair)
    assert lm.get_model_info()["inputs_cut"] == 1
    assert "loses its beginning" in caplog.text
    assert cut != Linearize(converted, tokenizer=words).loglikelihood(pair)
    with pytest.raises(InputError, match=r"a continuation of .* tokens is to be scored"):
        lm.loglikelihood([SimpleNamespace(args=("a", text))])
    with pytest.raises(InputError, match="leaves no room for a prompt"):
        lm.generate_until([SimpleNamespace(args=("a", {"until": [], "max_gen_toks": 16}))])
    with pytest.raises(UsageError, match="more than the 512 positions"):
        Linearize(llama, tokenizer=words, max_length=513)


def test_contexts_read_again(llama: Any, words: Any) -> None:
    from lm_eval.api.instance import Instance

    from linearize.eval.harness.model import Linearize

    def ask(context: str, **options: Any) -> tuple[float, bool]:
        lm = Linearize(llama, tokenizer=words, **options)
        request = Instance("loglikelihood", {}, (context, " end"), 0, ("task", 0, 1))
        return lm.loglikelihood([request])[0]

    assert ask("Once upon", jrt=2) == pytest.approx(ask("Once upon\nOnce upon"))
    assert ask("", jrt=2) == ask("")
    lm = Linearize(llama, tokenizer=words, jrt=2, max_length=40)
    twice = lm.inputs.again("word " * 50, " end")
    first, second = twice.split("\n")
    assert first == second, "cut before it is repeated"
    assert len(lm.tok_encode(twice)) <= 40
    assert lm.get_model_info()["tokens_read_again"] > 0
    with pytest.raises(UsageError, match="chat template"):
        lm.apply_chat_template([{"role": "user", "content": "x"}])


def test_adapters(llama: Any, words: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from linearize.eval.harness.model import Linearize

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    llama.save_pretrained(base)
    words.save_pretrained(base)
    copy = LlamaForCausalLM.from_pretrained(base)
    adapted = get_peft_model(copy, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(adapter)
    request = [SimpleNamespace(args=("Once upon", " a time"))]
    wanted = Linearize(adapted, tokenizer=words).loglikelihood(request)[0]
    plain = Linearize(str(base), device="cpu").loglikelihood(request)[0]
    assert plain[0] != pytest.approx(wanted[0])
    for how in ({"pretrained": str(base), "peft": str(adapter)}, {"pretrained": str(adapter)}):
        lm = Linearize(**how, device="cpu")
        assert lm.loglikelihood(request)[0][0] == pytest.approx(wanted[0], abs=1e-4)
        assert len(lm.settings["adapter_hash"]) == 64
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="does not fit the model"):
        Linearize(str(base), peft=str(adapter), device="cpu")
