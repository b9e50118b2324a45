"""The decode command: text streams, JSON is one object, every end has its documented code."""

import io
import json
import resource
import subprocess
import sys

import pytest

from linearize.cli import decode

PROMPT = "Once upon a time, there was a little girl"


@pytest.fixture
def run(monkeypatch, capsys, shared):
    """Run `decode ARGS` on a real model; returns exit code, stdout and stderr."""

    def run(*arguments, model=str(shared / "data" / "models" / "stories260K")):
        monkeypatch.setattr(sys, "argv", ["decode", model, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            decode.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


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
    assert values["sampler"] == "greedy"


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
    assert first["sampler"] == "sample"
    assert first["options"] == {"temperature": 1.2, "top_k": 50}
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
        (("-p", "a", "--temperature", 0), 2, "choose the sampler 'greedy'"),
        (("-p", "a", "--dtype", "flaot32"), 2, "did you mean 'float32'"),
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
