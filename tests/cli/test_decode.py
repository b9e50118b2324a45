"""The decode command: text streams, JSON is one object, every end has its documented code."""

import io
import json
import resource
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.decoding import generate

PROMPT = "Once upon a time, there was a little girl"


def test_the_continuation_goes_to_stdout_and_figures_to_stderr(run):
    code, out, err = run("--prompt", PROMPT, "-n", 20)
    assert code == 0
    assert out.startswith(" named Lily. She loved to play")
    assert out.endswith("\n")
    assert "20 tokens after" in err
    assert "ended by length" in err


def test_text_comes_as_it_is_made(shared):
    model = shared / "data" / "models" / "stories260K"
    command = [sys.executable, "-m", "linearize.cli.decode", model, "-p", PROMPT, "-n", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        first = process.stdout.read(5)
        assert process.poll() is None, "the first characters should come before the last token"
        rest = process.stdout.read()
    assert len(first + rest) > 300


def test_a_reader_that_goes_away_is_no_error(shared):
    model = shared / "data" / "models" / "stories260K"
    command = [sys.executable, "-m", "linearize.cli.decode", model, "-p", PROMPT, "-n", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(5)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_json_is_one_object_with_the_same_text(run):
    _, streamed, _ = run("-p", PROMPT, "-n", 20)
    code, out, _ = run("-p", PROMPT, "-n", 20, "--json")
    values = json.loads(out)
    assert code == 0
    assert values["text"] + "\n" == streamed
    assert values["prompt"] == PROMPT
    assert len(values["ids"]) == 20
    assert values["finish_reason"] == "length"
    assert values["settings"]["sampler"] == "greedy"
    assert values["settings"]["max_new_tokens"] == 20
    assert values["seconds"] > 0
    assert values["versions"].keys() == {"linearize", "torch", "transformers"}


def test_prompts_come_from_files_and_stdin_too(run, tmp_path, monkeypatch):
    _, expected, _ = run("-p", PROMPT, "-n", 8)
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    assert run("--prompt-file", file, "-n", 8)[1] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    assert run("--stdin", "-n", 8)[1] == expected


def test_a_sampling_option_chooses_the_sampler_and_the_seed_the_text(run):
    draw = ("-p", PROMPT, "-n", 20, "--json", "--temperature", 1.2, "--top-k", 50)
    first, same, other = (json.loads(run(*draw, "--seed", s)[1]) for s in (1, 1, 2))
    assert first["settings"]["sampler"] == "sample"
    assert first["settings"]["options"] == {"temperature": 1.2, "top_k": 50}
    assert first["text"] == same["text"] != other["text"]


def test_stop_strings_end_the_text(run):
    code, out, err = run("-p", PROMPT, "--stop", "play", "--stop", "zzz")
    assert code == 0
    assert out == " named Lily. She loved to \n"
    assert "ended by stop" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "exactly one of --prompt"),
        (("-p", "a", "--stdin"), 2, "exactly one of --prompt"),
        (("--prompt-file", "nowhere.txt"), 3, "cannot read the prompt file nowhere.txt"),
        (("-p", "a", "--sampler", "gready"), 2, "did you mean 'greedy'"),
        (("-p", "a", "--sampler", "greedy", "--top-k", 5), 2, "it belongs to 'sample'"),
        (("-p", "a", "--temperature", 0, "--sampler", "sample"), 2, "choose the sampler 'greedy'"),
        (("-p", "a", "--num-return", 2), 2, "the same text"),
        (("-p", "a", "--num-beams", 2, "--num-return", 3), 2, "more than num_beams=2"),
        (("-p", "a", "--num-beams", 2, "--top-k", 3), 2, "it belongs to 'sample'"),
        (("-p", "a", "--anti-repetition", "dito-cap"), 2, "did you mean 'ditto-cap'"),
        (("-p", "a", "--dry", "--language", "go"), 2, "used by no remedy"),
        (("-p", "a", "--option", "dry.base=2"), 2, "'dry' is not used"),
        (("-p", "a", "--dry", "--option", "dry.bass=2"), 2, "did you mean 'base'"),
        (("-p", "a", "--dry", "--option", "dry"), 2, "NAME.KEY=VALUE"),
        (("-p", "a", "--dry", "--dry-base", 0.5), 2, "base=0.5"),
        (("-p", "a", "--truncate", "right"), 2, "the only way is 'left'"),
        (("-p", "a", "--system", "b"), 2, "--system belongs to --chat"),
        (("-p", "a", "--out", "b"), 2, "belong to --jsonl"),
        (("-p", "a", "--chat"), 3, "has no chat template"),
        (("-p", "a", "--tokenizer", "nowhere"), 3, "no model directory nowhere"),
        (("-p", "a", "--dtype", "flaot32"), 2, "did you mean 'float32'"),
        (("-p", "a", "--compile", "allways"), 2, "did you mean 'always'"),
        (("-p", "a", "--device", "tpu9"), 2, "device='tpu9'"),
        (("-p", "a", "-n", 0), 2, "max-new-tokens"),
        (("-p", "a", "--tempature", 1), 2, "--temperature"),
    ],
    ids=str,
)
def test_mistakes_end_with_one_line_and_their_code(run, arguments, code, says):
    got, out, err = run(*arguments)
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    got, out, err = run(*arguments, "--json")
    assert got == code
    assert says in json.loads(out)["error"]["message"]
    assert json.loads(out)["error"]["exit_code"] == code
    assert err == ""


def test_a_temperature_of_zero_is_greedy(run):
    zero = json.loads(run("-p", PROMPT, "-n", 8, "--temperature", 0, "--top-p", 0.9, "--json")[1])
    assert zero["settings"]["sampler"] == "greedy"
    assert zero["text"] == json.loads(run("-p", PROMPT, "-n", 8, "--json")[1])["text"]


def test_several_texts_are_one_object_each(run):
    drawn = ("-p", PROMPT, "-n", 8, "--temperature", 1, "--seed", 3, "--num-return", 3)
    code, out, _ = run(*drawn, "--json")
    values = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [v["return"] for v in values] == [0, 1, 2]
    fourth = ("-p", PROMPT, "-n", 8, "--temperature", 1, "--seed", 4, "--json")
    assert values[1]["text"] == json.loads(run(*fourth)[1])["text"]
    _, out, err = run(*drawn)
    assert all(f"--- {i + 1} of 3\n{values[i]['text']}\n" in out for i in range(3))
    assert err.count("ended by length") == 3
    _, out, _ = run("-p", PROMPT, "-n", 8, "--num-beams", 3, "--num-return", 2, "--json")
    beams = [json.loads(line) for line in out.splitlines()]
    assert beams[0]["settings"]["options"] == {"num_beams": 3}
    assert beams[0]["text"] != beams[1]["text"]


def test_remedies_go_by_flags_and_any_option_by_name(run):
    loop = ("-p", PROMPT, "-n", 60, "--json")
    free = json.loads(run(*loop)[1])
    held = json.loads(run(*loop, "--no-repeat-ngram", 2, "--repetition-penalty", 1.5)[1])
    assert held["settings"]["remedies"] == {
        "repetition-penalty": {"penalty": 1.5},
        "no-repeat-ngram": {"size": 2},
    }
    assert held["text"] != free["text"]
    off = ("--no-repeat-ngram", 0, "--repetition-penalty", 1)
    assert json.loads(run(*loop, *off)[1])["settings"]["remedies"] == {}
    flags = ("--dry-multiplier", 3, "--dry-allowed-length", 1, "--dry-breaker", "x")
    by_flag = json.loads(run(*loop, *flags)[1])
    by_name = [f"--option=dry.{o}" for o in ("multiplier=3", "allowed-length=1", "breakers=[x]")]
    by_name = json.loads(run(*loop, "--dry", *by_name)[1])
    assert by_flag["settings"]["remedies"] == {
        "dry": {"multiplier": 3, "allowed_length": 1, "breakers": ["x"]}
    }
    assert by_name["settings"] == by_flag["settings"]
    assert by_name["ids"] == by_flag["ids"]


def test_a_long_prompt_can_lose_its_beginning(run):
    code, _, err = run("-p", PROMPT * 100, "-n", 8)
    assert code == 3
    assert "tokens, and this llama model has 512 positions" in err
    assert "--truncate left" in err
    code, out, _ = run("-p", PROMPT * 100, "-n", 8, "--truncate", "left", "--json")
    assert code == 0
    assert json.loads(out)["prompt_tokens"] == 512 - 8


def test_a_model_without_tokenizer_can_borrow_one(run, stories, shared):
    (stories / "tokenizer.json").unlink()
    (stories / "tokenizer_config.json").unlink()
    code, _, err = run("-p", PROMPT, model=str(stories))
    assert code == 3
    assert "expected tokenizer.json" in err
    assert "--tokenizer DIR" in err
    models = shared / "data" / "models"
    code, out, _ = run(
        "-p", PROMPT, "-n", 8, "--tokenizer", models / "stories260K", model=str(stories)
    )
    assert (code, out) == (0, run("-p", PROMPT, "-n", 8)[1])
    code, _, err = run(
        "-p", "extraordinary", "--tokenizer", models / "TinyStories-656K", model=str(stories)
    )
    assert code == 3
    assert "outside the model's vocabulary of 512" in err


def test_logits_that_break_end_with_what_there_is_and_code_4(run, shared, tmp_path):
    golden = shared / "golden" / "anti_repetition"
    model = AutoModelForCausalLM.from_pretrained(golden / "tiny_llama")
    tokenizer = AutoTokenizer.from_pretrained(golden / "tokenizer")
    free = generate(model, tokenizer, "for i in range(10):\n", max_new_tokens=12)[0]
    read = tokenizer("for i in range(10):\n").input_ids
    poison = next(t for t in free.ids if t not in read)
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = ("-p", "for i in range(10):\n", "-n", 12)
    code, out, err = run(*asked, "--json", model=str(tmp_path))
    values = json.loads(out)
    assert code == 4
    assert values["finish_reason"] == "nan"
    assert values["ids"] == free.ids[: free.ids.index(poison) + 1]
    assert f"NaN or infinite after {len(values['ids'])} tokens" in err
    code, out, _ = run(*asked, model=str(tmp_path))
    assert (code, out) == (4, values["text"] + "\n")


def test_a_model_that_is_not_there(run, tmp_path):
    code, out, err = run("-p", "a", model=str(tmp_path / "nothing"))
    assert (code, out) == (3, "")
    assert "there is no model directory" in err


def test_help_is_fast_and_loads_no_torch():
    code = (
        "import sys, linearize.cli.decode as d; sys.argv = ['decode', '--help']\n"
        "try: d.main()\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    taken = []
    for _ in range(3):
        started = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(now.ru_utime + now.ru_stime - started.ru_utime - started.ru_stime)
        assert "Continue a text" in ended.stdout
        assert ended.stderr.strip() == "False False"
    assert min(taken) < 1.5, "half a second on an idle machine; this limit allows for a busy one"
