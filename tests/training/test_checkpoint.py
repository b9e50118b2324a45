from __future__ import annotations

import json
import re
import resource
import shutil
import sys

import pytest
import torch
from small_run import children, small_model, small_settings
from torch.nn.functional import cross_entropy

from linearize.errors import InputError, OutputError
from linearize.training import checkpoint
from linearize.training.checkpoint import Progress
from linearize.training.optimizer import adamw

SETTINGS = {"learning_rate": 0.001, "betas": (0.9, 0.95), "rows": 3}


class Trainee:
    """A model, its optimizer, and steps that depend on nothing but their number."""

    def __init__(self, **settings):
        self.model = small_model()
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = adamw(self.parameters, small_settings(**settings))

    def train(self, step):
        ids = torch.randint(0, 512, (2, 16), generator=torch.Generator().manual_seed(step))
        logits = self.model(ids, use_cache=False).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, run_dir, step, settings=SETTINGS):
        return checkpoint.save(
            run_dir,
            Progress(step, 10 * step, 0.5, (1 / 3,) * step),
            parameters=self.parameters,
            optimizer=self.optimizer,
            settings=settings,
            extra={"scaler": {"scale": 2.0}},
            more={"rows": torch.arange(step)},
        )

    def load(self, path, settings=SETTINGS):
        return checkpoint.load(
            path, parameters=self.parameters, optimizer=self.optimizer, settings=settings
        )


@pytest.fixture
def saved(tmp_path):
    trainee = Trainee()
    trainee.train(1)
    return trainee, trainee.save(tmp_path, 1)


def test_goes_on_as_if_nothing_had_happened(saved):
    trainee, path = saved
    other = Trainee()
    progress, extra, more = other.load(path)
    assert progress == Progress(1, 10, 0.5, (1 / 3,))
    assert extra == {"scaler": {"scale": 2.0}}
    assert more.keys() == {"rows"}
    assert more["rows"].tolist() == [0]
    for step in (2, 3):
        trainee.train(step)
        other.train(step)
    for name, parameter in trainee.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name


def test_keeps_the_last_two(tmp_path):
    trainee = Trainee()
    assert checkpoint.latest(tmp_path) is None
    for step in (9, 10, 100):
        trainee.save(tmp_path, step)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000010",
        "step-00000100",
    ]
    assert checkpoint.latest(tmp_path).name == "step-00000100"
    assert sorted(p.name for p in checkpoint.latest(tmp_path).iterdir()) == [
        "state.json",
        "state.safetensors",
    ]


def test_what_a_kill_left_is_ignored_and_removed(saved, tmp_path):
    trainee, path = saved
    for name in (".partial-00000002", ".old-step-00000000"):
        shutil.copytree(path, path.with_name(name))
        (path.with_name(name) / "state.json").unlink()
    assert checkpoint.latest(tmp_path) == path
    trainee.save(tmp_path, 2)
    assert len(list(path.parent.iterdir())) == 2


def truncate(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def change_a_weight(path):
    file = path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit_the_counter(path):
    file = path / "state.json"
    file.write_text(file.read_text().replace('"step": 1', '"step": 7'))


def cut_the_state(path):
    (path / "state.json").write_text((path / "state.json").read_text()[:40])


def not_a_mapping(path):
    (path / "state.json").write_text("[1, 2]")


def lose_the_tensors(path):
    (path / "state.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [truncate, change_a_weight, edit_the_counter, cut_the_state, not_a_mapping, lose_the_tensors],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_refused_and_changes_nothing(saved, damage):
    _, path = saved
    damage(path)
    other = Trainee()
    before = {name: parameter.clone() for name, parameter in other.parameters.items()}
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is damaged or was edited"):
        other.load(path)
    assert all(torch.equal(before[name], other.parameters[name]) for name in before)
    assert not other.optimizer.state


def test_other_settings_are_named(saved):
    trainee, path = saved
    changed = SETTINGS | {"learning_rate": 0.1, "seed": 3}
    with pytest.raises(InputError) as error:
        trainee.load(path, changed)
    assert "learning_rate was 0.001 and is 0.1; seed was None and is 3;" in str(error.value)
    assert "rows" not in str(error.value)


def test_another_model_is_refused(saved):
    _, path = saved
    other = Trainee()
    other.parameters.pop("model.norm.weight")
    with pytest.raises(InputError, match=r"another model.*\(model\.norm\.weight\)"):
        other.load(path)


def test_a_newer_format_says_so(saved):
    trainee, path = saved
    state = json.loads((path / "state.json").read_text())
    del state["state_sha256"]
    state["format"] = 99
    state["state_sha256"] = checkpoint._state_hash(state)
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="has format 99, this version reads 1"):
        trainee.load(path)


def save_without_room(run_dir):
    """Files end at 100 kB here, as they would on a full disk; the state takes megabytes."""
    torch.set_num_threads(1)
    trainee = Trainee()
    trainee.train(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        trainee.save(run_dir, 2)
    except OutputError as error:
        (run_dir / "message").write_text(str(error))
    sys.exit(0)


def test_no_room_leaves_the_last_checkpoint(saved, tmp_path):
    trainee, path = saved
    process = children().Process(target=save_without_room, args=(tmp_path,))
    process.start()
    process.join()
    message = (tmp_path / "message").read_text()
    assert "cannot write checkpoint" in message
    assert "step-00000002" in message
    assert f"the last good checkpoint is {path}" in message
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [path.name]
    trainee.load(path)


def test_a_file_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(OutputError, match="there is no earlier checkpoint"):
        Trainee().save(tmp_path, 1)
