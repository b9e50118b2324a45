"""The plugin inside the harness: its scores, its tasks, its record, what it refuses."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import linearize
from linearize import pretrained
from linearize.errors import InputError, UsageError
from linearize.eval.harness import evaluate
from linearize.eval.tasks import TASKS, config

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
# lm-eval and what it imports warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

STOCK = {
    "local_arc_easy": "arc/arc_easy",
    "local_arc_challenge": "arc/arc_challenge",
    "local_hellaswag": "hellaswag/hellaswag",
    "local_piqa": "piqa/piqa",
    "local_winogrande": "winogrande/default",
    "local_lambada": "lambada/lambada_openai",
    "local_wikitext": "wikitext/wikitext",
    "local_gsm8k": "gsm8k/gsm8k",
    "local_humaneval": "humaneval/humaneval",
    "local_mbpp": "mbpp/mbpp",
}


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of each local file: what is tested does not need more."""
    folder = tmp_path_factory.mktemp("data")
    source = shared / "data" / "benchmarks"
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    for file in source.glob("*/*.jsonl"):
        lines = file.read_text().splitlines()
        if file.stem == "mbpp":
            lines = [line for line in lines if '"split": "test"' in line]
        target = folder / file.relative_to(source)
        target.parent.mkdir()
        target.write_text("\n".join(lines[:8]) + "\n")
    with gzip.open(shared / "data" / "HumanEval.jsonl.gz", "rt") as file:
        (folder / "HumanEval.jsonl").write_text("".join(itertools.islice(file, 4)))
    articles = (shared / "data" / "wikitext-2" / "valid.txt").read_text().splitlines()
    (folder / "wikitext").mkdir()
    short = ["", " = One = ", "", *articles[3:5], " = Two = ", "", articles[5], ""]
    (folder / "wikitext" / "test.txt").write_text("\n".join(short))
    return folder


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

    manager = Tasks(include_defaults=False, data_dir=data)
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

    names = list(STOCK)
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


@pytest.mark.parametrize("name", STOCK)
def test_prompts_are_those_of_the_stock_tasks(name: str, data: Path) -> None:
    """The harness's own YAML, given our documents, asks the same."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / f"{STOCK[name]}.yaml"
    code = name in ("local_humaneval", "local_mbpp")  # their functions would fetch a metric
    theirs = load_yaml(path, resolve_func=not code)
    mine = config(name, data_dir=data)
    if code:
        for key in ("metric_list", "filter_list"):
            theirs.pop(key, None)
        if "fewshot_config" in theirs:
            theirs["fewshot_config"]["samples"] = mine["fewshot_config"]["samples"]
    else:
        named = [[m["metric"] for m in c["metric_list"]] for c in (theirs, mine)]
        assert named[0] == named[1]
        assert theirs.get("filter_list") == mine.get("filter_list")
    assert theirs.get("generation_kwargs") == mine.get("generation_kwargs")
    assert theirs.get("num_fewshot") == mine.get("num_fewshot")
    for key in ("tag", "group", "dataset_path", "dataset_name"):
        theirs.pop(key, None)
    theirs = {key: value for key, value in theirs.items() if not key.endswith("_split")}
    splits = {key: value for key, value in mine.items() if key.endswith("_split")}
    same = {"task": name, "custom_dataset": mine["custom_dataset"], **splits}
    asked = []
    for fields in ({**theirs, **same}, {"task": name, **mine}):
        task = ConfigurableTask(config=fields)
        task.set_config("num_fewshot", 2 if name != "local_wikitext" else 0)
        task.set_fewshot_seed(1)
        task.build_all_requests(limit=5)
        asked.append([(r.request_type, r.args) for r in task.instances])
    assert asked[0] == asked[1]
    assert len(asked[0]) > 1


def test_hellaswag_contexts_are_split_where_the_released_ones_are() -> None:
    from linearize.eval.tasks.choices import _two_parts

    assert _two_parts("A man sits on a roof. he") == ("A man sits on a roof.", "he")
    assert _two_parts("He walks. She runs.") == ("He walks. She runs.", "")
    assert _two_parts("[header] How to cook [title] Boil, e.g. water.")[1] == ""


def test_canonical_solutions_pass_and_wrong_ones_do_not(data: Path, shared: Path) -> None:
    score = config("local_humaneval", data_dir=data)["process_results"]
    solved = [json.loads(line) for line in (data / "HumanEval.jsonl").read_text().splitlines()]
    for row in solved:
        assert score(row, [[row["prompt"] + row["canonical_solution"]]]) == {"pass@1": 1.0}
        assert score(row, [[row["prompt"] + "    return None\n"]]) == {"pass@1": 0.0}
    score = config("local_mbpp", data_dir=data)["process_results"]
    for line in (data / "mbpp" / "mbpp.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not row["test_setup_code"]:
            assert score(row, [row["code"]]) == {"pass_at_1": 1.0}


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "x = [0] * 10**10",
        "open('big', 'w').write('x' * 3 * 10**6)",
        "files = [open('program.py') for _ in range(100)]",
        "import os; assert os.environ.get('HOME')",
    ],
)
def test_programs_have_limits(program: str) -> None:
    from linearize.eval.tasks.execute import passes

    assert not passes(program, seconds=1, megabytes=512)
    assert passes("print('x' * 10**6)", seconds=5, megabytes=512)


def test_an_evaluation_goes_on_where_it_was_ended(
    llama: Any, words: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linearize.eval.harness import scoring

    options = {"data_dir": data, "out": tmp_path / "out", "bootstrap_iters": 0}
    arguments = {"tokenizer": words, "batch_size": 4}
    names = ["local_piqa", "local_lambada"]
    score, batches = scoring.Scorer._score, []

    def interrupted(*given: Any) -> Any:
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return score(*given)

    monkeypatch.setattr(scoring.Scorer, "_score", interrupted)
    with pytest.raises(linearize.errors.Interrupted, match="goes on from there"):
        evaluate(llama, names, model_args=arguments, **options)
    file = tmp_path / "out" / "responses.jsonl"
    done = file.read_bytes()
    file.write_bytes(done + b'{"key": "torn')
    whole = evaluate(llama, names, model_args=arguments, **options)
    assert file.read_bytes().startswith(done)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}), "nothing was computed twice"

    monkeypatch.setattr(scoring.Scorer, "_score", lambda *given: pytest.fail("computed again"))
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
    file.write_text("{broken\n")
    with pytest.raises(InputError, match=r"responses\.jsonl line 1 is damaged"):
        evaluate(llama, names, model_args=arguments, **options)


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
    converted = linearize.apply(copy, linearize.LigerSpec(window=8))
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


def test_what_cannot_run_is_said_before_the_model_is_loaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    file = tmp_path / "far.yaml"
    file.write_text(
        "task: far\ndataset_path: nobody/nothing\noutput_type: loglikelihood\ntest_split: train\n"
        "doc_to_text: '{{text}}'\ndoc_to_target: ' end'\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    nowhere = str(tmp_path / "no-model")

    def ask(*names: str, **options: Any) -> None:
        evaluate(nowhere, names, include_path=str(tmp_path), **{"data_dir": data, **options})

    with pytest.raises(UsageError, match="local_mbpp runs code that the model writes"):
        ask("local_mbpp")
    with pytest.raises(InputError, match="was not told where; give --data-dir"):
        ask("local_piqa", data_dir=None)
    with pytest.raises(InputError, match=r"holds no piqa/validation\.jsonl"):
        ask("local_piqa", data_dir=tmp_path)
    with pytest.raises(UsageError, match=r"no parameter 'fiel'; did you mean 'file'"):
        ask("local_piqa", parameters={"local_piqa": {"fiel": 1}})
    with pytest.raises(InputError, match=r"there is no task file .*nowhere\.yaml"):
        ask("nowhere.yaml")
    with pytest.raises(UsageError, match="names nothing"):
        ask(" , ")
    with pytest.raises(
        InputError, match=r"nobody/nothing is on the hub.*hf download nobody/nothing.*--data-dir"
    ):
        ask(str(file))
    skipped = {}
    with pytest.raises(InputError, match="no model directory"):
        ask("local_piqa", str(file), skip_unavailable=True, on_skipped=skipped.__setitem__)
    assert list(skipped) == [str(file)]
    (tmp_path / "nobody" / "nothing").mkdir(parents=True)
    (tmp_path / "nobody" / "nothing" / "train.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="no model directory"):
        ask(str(file), data_dir=tmp_path)


def test_unknown_tasks_get_the_nearest_names(data: Path) -> None:
    from linearize.eval.harness.checking import check
    from linearize.eval.harness.task_manager import Tasks

    manager = Tasks(include_defaults=False, data_dir=data)

    def ask(*names: str) -> Any:
        return check(manager, names, execute_code=False, skip_unavailable=False)

    with pytest.raises(UsageError, match="nearest: local_winogrande"):
        ask("local_winogrand")
    assert {t.task_name for t in ask("local_arc_*").tasks} == {
        "local_arc_easy",
        "local_arc_challenge",
    }


def test_metadata_of_the_harness_reaches_local_tasks(data: Path) -> None:
    from linearize.eval.harness.task_manager import FromMetadata

    file = str(data / "piqa" / "validation.jsonl")
    manager = FromMetadata(
        include_defaults=False,
        metadata={"data_dir": str(data), "local_piqa.file": file, "pretrained": "embedded"},
    )
    assert manager.match_tasks(["local_piqa"]) == ["local_piqa"]
    task = manager._load_spec("local_piqa")
    assert task.config.metadata["parameters"] == {"file": file}
    assert "local_arc_easy" in manager.all_subtasks
    assert set(STOCK) <= set(TASKS)


def test_processes_draw_the_examples_that_one_would(data: Path) -> None:
    from linearize.eval.harness.task_manager import Tasks, in_step

    def prompts(rank: int, count: int) -> dict[int, Any]:
        task = Tasks(include_defaults=False, data_dir=data)._load_spec("local_arc_easy")
        in_step(task, rank, count)
        task.set_config("num_fewshot", 2)
        task.set_fewshot_seed(5)
        task.build_all_requests(rank=rank, world_size=count)
        return {r.doc["id"]: r.args[0] for r in task.instances}

    alone = prompts(0, 1)
    assert len(set(alone.values())) == 8
    assert {**prompts(0, 3), **prompts(1, 3), **prompts(2, 3)} == alone
