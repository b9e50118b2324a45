"""The swap file by file: what `apply` and `save_pretrained` write, in little memory, resumable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from models import small, tokens
from test_bases import base as family
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import linearize
from linearize import LigerSpec, pretrained, recipe, swapping
from linearize.cli import main
from linearize.converted import write_json
from linearize.errors import InputError, OutputError, UsageError
from linearize.recipe import Recipe


def saved(model, where: Path, **how) -> Path:
    """A model as directory, with a tokenizer."""
    model.save_pretrained(where, **how)
    for file in pretrained.locate("embedded").glob("tokenizer*"):
        shutil.copy(file, where)
    return where


def asked(base: Path, out: Path, *changes: str) -> Recipe:
    return recipe.load(None, [f"base={base}", f"out={out}", "window=8", *changes])


def loaded(where: Path):
    model, info = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True)
    assert not any(info.values()), info
    return model


def check_equal(found: Path, expected: Path) -> None:
    """Weights, their dtypes, and what is written beside them."""
    ours, theirs = loaded(found).state_dict(), loaded(expected).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    for name in ("config.json", "generation_config.json"):
        a, b = (json.loads((path / name).read_text()) for path in (found, expected))
        if "linearize" in a:
            assert a["linearize"].pop("provenance")["base"]
        assert a == b
    stubs = [(path / "modeling_linearize.py").read_text() for path in (found, expected)]
    assert stubs[0] == stubs[1]


CASES = {
    "llama": ["mix=learned"],
    "phi3": ["mix=learned", "keep_softmax=[-1]"],  # one layer for q, k, v
    "gpt_neox": ["mix=fixed"],  # adds nothing
    "mixtral": ["mix=joint"],  # experts are stored apart and computed together
    "gemma2": ["mix=learned", "gate=gsa", "every=2"],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shards", [None, "20KB"])
def test_it_writes_what_apply_and_save_write(case: str, shards: str | None, tmp_path: Path) -> None:
    kind = {} if shards is None else {"max_shard_size": shards}
    model = family(case)
    base = saved(model.to(torch.bfloat16) if shards else model, tmp_path / "base", **kind)
    run = asked(base, tmp_path / "out", *CASES[case])
    done = linearize.swap(run)
    expected = linearize.apply(pretrained.load(base), run.liger.spec())
    expected.save_pretrained(tmp_path / "expected")
    check_equal(done.path, tmp_path / "expected")
    held = json.loads((done.path / "config.json").read_text())["linearize"]["provenance"]
    assert held["hash"] == pretrained.content_hash(base)
    files = pretrained.weight_files(done.path)
    added = done.summary["added_parameters"]
    assert len(files) == done.summary["files"] == len(pretrained.weight_files(base)) + bool(added)
    pretrained.check_weights(done.path)
    ids = tokens(1, 12)
    both = [linearize.load(path)(ids).logits for path in (done.path, tmp_path / "expected")]
    assert torch.equal(*both)
    assert "Nothing was trained" in (done.path / "README.md").read_text()
    assert not list(tmp_path.glob("*.partial"))
    assert not list(done.path.glob(".*"))


def test_what_starts_at_random_follows_the_seed(tmp_path: Path) -> None:
    base = saved(small("llama"), tmp_path / "base")
    for seed in (0, 1):
        run = asked(base, tmp_path / f"out{seed}", "prefix=jrt", f"training.seed={seed}")
        linearize.swap(run)
        torch.manual_seed(seed)
        expected = linearize.apply(pretrained.load(base), run.liger.spec())
        expected.save_pretrained(tmp_path / f"expected{seed}")
        check_equal(tmp_path / f"out{seed}", tmp_path / f"expected{seed}")
    one, other = (pretrained.weight_files(tmp_path / f"out{seed}")[-1] for seed in (0, 1))
    assert one.read_bytes() != other.read_bytes()


LIMITED = """
    import resource, sys
    import torch
    import linearize
    from linearize import pretrained, recipe
    from transformers.models.llama import modeling_llama
    base, out = sys.argv[1:]
    run = recipe.load(None, [f"base={base}", f"out={out}"])
    linearize.swap  # imported before memory is counted
    def limit(megabytes):
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limit = -1 if megabytes is None else held + megabytes * 10**6
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    limit(64)
    linearize.swap(run)
    limit(64)
    try:
        pretrained.load(pretrained.locate(base))
    except Exception as error:
        print(f"too large to load: {type(error).__name__}")
    else:
        print("loaded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is read from /proc")
def test_a_model_larger_than_memory_is_swapped(tmp_path: Path) -> None:
    """160 MB of weights where the process may take 64 MB more than it has; loading needs more."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=4,
        bos_token_id=1,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    base = saved(model, tmp_path / "base", max_shard_size="20MB")
    size = sum(file.stat().st_size for file in pretrained.weight_files(base))
    assert size > 150e6
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), base, tmp_path / "out"],
        capture_output=True,
        text=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "too large to load" in ended.stdout, ended.stdout + ended.stderr
    expected = linearize.apply(pretrained.load(base), LigerSpec())
    expected.save_pretrained(tmp_path / "expected")
    check_equal(tmp_path / "out", tmp_path / "expected")


def interrupted(monkeypatch: pytest.MonkeyPatch, run: Recipe, after: int) -> Path:
    """A swap that stops in the middle of a file, after so many whole ones."""
    whole, copy = [], swapping._copy

    def stop(source, target, digest):
        if len(whole) == after:
            target.with_name(f".{target.name}").write_bytes(source.read_bytes()[:100])
            raise KeyboardInterrupt
        whole.append(target)
        copy(source, target, digest)

    with monkeypatch.context() as patched:
        patched.setattr(swapping, "_copy", stop)
        with pytest.raises(KeyboardInterrupt):
            linearize.swap(run)
    return Path(f"{run.out}.partial")


def test_a_swap_goes_on_with_the_file_it_stopped_in(tmp_path, monkeypatch) -> None:
    base = saved(small("llama"), tmp_path / "base", max_shard_size="20KB")
    run = asked(base, tmp_path / "out")
    assert not interrupted(monkeypatch, run, 0).exists(), "nothing to go on with"
    partial = interrupted(monkeypatch, run, 2)
    first, second = sorted(partial.glob("model-*"))
    with pytest.raises(OutputError, match="--resume"):
        linearize.swap(run)
    with pytest.raises(UsageError, match=r"another recipe \(different: liger\)"):
        linearize.swap(asked(base, tmp_path / "out", "window=9"), resume=True)
    spoiled = bytearray(second.read_bytes())
    spoiled[-1] ^= 1
    second.write_bytes(spoiled)
    kept = first.stat().st_mtime_ns
    done = linearize.swap(run, resume=True)
    assert (done.path / first.name).stat().st_mtime_ns == kept, "not copied again"
    linearize.apply(pretrained.load(base), run.liger.spec()).save_pretrained(tmp_path / "expected")
    check_equal(done.path, tmp_path / "expected")
    held = json.loads((done.path / "config.json").read_text())["linearize"]["provenance"]
    assert held["hash"] == pretrained.content_hash(base)
    assert not list(done.path.glob(".*"))


def drop(base: Path) -> None:
    """A tensor that neither index nor weights know of."""
    index = json.loads((base / pretrained.INDEX).read_text())
    index["weight_map"].pop("model.norm.weight")
    write_json(base / pretrained.INDEX, index)


def shorten(base: Path) -> None:
    file = pretrained.weight_files(base)[0]
    file.write_bytes(file.read_bytes()[:-1])


def convert(base: Path) -> None:
    linearize.apply(pretrained.load(base), LigerSpec()).save_pretrained(base)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (drop, r"1 missing from the weights \(model\.norm\.weight\)"),
        (shorten, "truncated or damaged"),
        (convert, "is converted already"),
        (lambda base: (base / "tokenizer.json").unlink(), "tokenizer"),
        (lambda base: pretrained.weight_files(base)[0].unlink(), "is missing"),
    ],
)
def test_bad_bases_are_refused_before_anything_is_written(damage, told, tmp_path) -> None:
    base = saved(small("llama"), tmp_path / "base", max_shard_size="20KB")
    damage(base)
    with pytest.raises(InputError, match=told):
        linearize.swap(asked(base, tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    base = saved(small("llama"), tmp_path / "base")
    for change, told in (
        ("keep_softmax=auto:1", "is measured by running the model"),
        ("keep_softmax=[7]", "7"),
        ("gate=gal", "did you mean 'gla'"),
    ):
        with pytest.raises(UsageError, match=told):
            linearize.swap(asked(base, tmp_path / "out", change))
    with pytest.raises(UsageError, match="would replace"):
        linearize.swap(asked(base, base), overwrite=True)
    with pytest.raises(UsageError, match="nowhere to write"):
        linearize.swap(recipe.load(None, [f"base={base}"]))
    with pytest.raises(UsageError, match="no model to swap"):
        linearize.swap(recipe.load(None, [f"out={tmp_path / 'out'}"]))
    linearize.swap(asked(base, tmp_path / "out"))
    with pytest.raises(OutputError, match="not empty"):
        linearize.swap(asked(base, tmp_path / "out"))
    linearize.swap(asked(base, tmp_path / "out", "window=16"), overwrite=True)
    assert loaded(tmp_path / "out").config.linearize["spec"]["window"] == 16


def command(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["linearize", "swap", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code or 0, *capsys.readouterr()


def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    base = saved(small("llama"), tmp_path / "base")
    out = tmp_path / "out"
    code, shown, said = command(
        monkeypatch, capsys, base, "--out", out, "--window", "16", "sinks=2"
    )
    assert code == 0, said
    assert "beside a window of 16 keys" in " ".join(shown.split())
    assert loaded(out).config.linearize["spec"]["sinks"] == 2
    again = command(monkeypatch, capsys, base, "--out", out, "--overwrite", "--json")
    assert json.loads(again[1])["spec"]["window"] == 64
    for arguments, expected, told in (
        ((base,), 2, "add --out DIR"),
        (("--out", tmp_path / "x"), 2, "name it first"),
        ((tmp_path / "no", "--out", tmp_path / "x"), 3, "there is no model directory"),
        ((base, "--out", out), 5, "not empty"),
    ):
        code, _, said = command(monkeypatch, capsys, *arguments)
        assert code == expected, said
        assert told in said
        assert said.count("\n") == 1
