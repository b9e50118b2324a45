"""Bad models are refused by name, before anything heavy is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, T5Config

from linearize import pretrained
from linearize.errors import InputError

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **values: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


# locate


def test_a_local_directory_is_found(model: Path) -> None:
    assert pretrained.locate(str(model)) == model


def test_a_misspelt_directory_suggests_its_neighbour(model: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'model'"):
        pretrained.locate(str(model.parent / "modle"))


def test_a_file_is_not_a_model(model: Path) -> None:
    with pytest.raises(InputError, match="is a file"):
        pretrained.locate(str(model / "config.json"))


def test_an_unreachable_hub_says_so_and_offers_a_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"could not be reached.*local directory works too"):
        pretrained.locate("nobody/no-such-model")


def test_a_name_that_is_no_hub_id_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="neither a local directory nor a hub id"):
        pretrained.locate("no body/model!")
    with pytest.raises(InputError, match="no model directory a/b/c"):
        pretrained.locate("a/b/c")


# read_config


def test_a_good_config_is_read_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert pretrained.read_config(model).model_type == "llama"


def test_missing_and_broken_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama",\n "hidden_size": }')
    with pytest.raises(InputError, match=r"config.json is not valid JSON \(line 2"):
        pretrained.read_config(model)
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        pretrained.read_config(model)


def test_edited_values_name_the_field(model: Path) -> None:
    edit(model, hidden_size="big")
    with pytest.raises(InputError, match="'hidden_size' expected int, got str"):
        pretrained.read_config(model)


def test_unknown_type_lists_what_is_supported(model: Path) -> None:
    edit(model, model_type="perceptron")
    with pytest.raises(InputError, match=r"'perceptron' is unknown.*llama"):
        pretrained.read_config(model)


def test_remote_code_names_the_flag_and_does_not_run(model: Path) -> None:
    trap = model / "configuration_x.py"
    trap.write_text(f"open({str(model / 'ran')!r}, 'w')\n")
    edit(model, model_type="custom_x", auto_map={"AutoConfig": "configuration_x.Config"})
    with pytest.raises(InputError, match="--trust-remote-code"):
        pretrained.read_config(model)
    assert not (model / "ran").exists()


def test_encoders_are_refused(tmp_path: Path) -> None:
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"not a decoder-only language model \(BertForMaskedLM\)"):
        pretrained.read_config(tmp_path / "bert")
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="encoder-decoder model"):
        pretrained.read_config(tmp_path / "t5")


# check_weights


def test_whole_weights_pass(model: Path) -> None:
    pretrained.check_weights(model)


def test_truncated_weights_are_named(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.safetensors \([\d,]+ bytes\) is truncated"):
        pretrained.check_weights(model)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="truncated or damaged"):
        pretrained.check_weights(model)


def test_pickle_checkpoints_are_refused(model: Path) -> None:
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model.bin is a pickle.*save_pretrained"):
        pretrained.check_weights(model)


def test_a_directory_without_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    with pytest.raises(InputError, match=r"no weights.*found consolidated.safetensors"):
        pretrained.check_weights(model)


def test_an_lfs_pointer_names_the_command(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(InputError, match="git lfs pull"):
        pretrained.check_weights(model)


def test_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "sharded"
    LlamaForCausalLM(CONFIG).save_pretrained(path, max_shard_size="20KB")
    pretrained.check_weights(path)
    first, second = pretrained.weight_files(path)[:2]
    shutil.copy(second, first)
    with pytest.raises(InputError, match=r"lacks \d+ tensors that"):
        pretrained.check_weights(path)
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name} is missing"):
        pretrained.check_weights(path)


def test_the_dtype_is_read_from_the_weights_if_the_config_is_silent(model: Path) -> None:
    LlamaForCausalLM(CONFIG).to(torch.bfloat16).save_pretrained(model)
    edit(model, dtype=None)
    config = pretrained.read_config(model)
    assert config.dtype is None
    assert pretrained.stored_dtype(model, config) == torch.bfloat16
    assert pretrained.load(model).dtype == torch.bfloat16


# content_hash, licence, tokenizer


def test_the_hash_follows_config_and_weights_only(model: Path) -> None:
    before = pretrained.content_hash(model)
    (model / "README.md").write_text("hello")
    assert pretrained.content_hash(model) == before
    edit(model, rms_norm_eps=1e-4)
    assert pretrained.content_hash(model) != before


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: other\nlicense_name: acme\n---\n", "acme"),
        ("---\nlicense: [mit, apache-2.0]\n---", "mit, apache-2.0"),
        ("---\nlicense: : broken\n---\n", None),
        ("# no front matter", None),
    ],
)
def test_licence_from_front_matter(model: Path, readme: str, expected: str | None) -> None:
    (model / "README.md").write_text(readme)
    assert pretrained.licence(model) == expected


def test_licence_file(model: Path) -> None:
    (model / "LICENSE.txt").write_text("...")
    assert pretrained.licence(model) == "see LICENSE.txt"


def test_tokenizer(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "models" / "stories260K"
    assert pretrained.tokenizer(source)("Once upon a time").input_ids
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, tmp_path / name)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(InputError, match=r"tokenizer in .* cannot be read"):
        pretrained.tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        pretrained.tokenizer(tmp_path)


# load


def test_load_keeps_the_checkpoint_dtype_or_casts(model: Path) -> None:
    assert pretrained.load(model).dtype == torch.float32
    assert pretrained.load(model, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_hidden_layers": 3}, r"9 missing from the weights \(model.layers.2"),
        ({"num_hidden_layers": 1}, r"9 not part of the model \(model.layers.1"),
        ({"num_key_value_heads": 4}, r"4 of another shape \(model.layers.0.self_attn.k_proj"),
    ],
)
def test_a_config_that_disagrees_with_the_weights(model: Path, change: dict, told: str) -> None:
    edit(model, **change)
    with pytest.raises(InputError, match=told):
        pretrained.load(model)
