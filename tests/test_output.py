"""A result directory is whole or absent, and nobody's files are lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from linearize.errors import OutputError, UsageError
from linearize.output import OutputDirectory, is_full


def finished(path: Path, text: str = "old") -> Path:
    path.mkdir()
    (path / "result.json").write_text(text)
    return path


def write(path: Path, text: str = "new", **options: object) -> None:
    with OutputDirectory(path, **options) as out:
        (out.path / "result.json").write_text(text)
        out.commit()


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_nothing_has_the_final_name_before_commit(tmp_path: Path) -> None:
    with OutputDirectory(tmp_path / "deep" / "out") as out:
        (out.path / "result.json").write_text("x")
        assert not out.final.exists()
        assert out.commit() == tmp_path / "deep" / "out"
    assert names(tmp_path / "deep") == ["out"]


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_filled_directory_needs_overwrite(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    with pytest.raises(OutputError, match=r"not empty.*--overwrite"):
        OutputDirectory(out)
    with pytest.raises(OutputError, match="not empty"):
        OutputDirectory(out, resume=True)
    write(out, overwrite=True)
    assert (out / "result.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_the_old_result_survives_a_failed_replacement(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), OutputDirectory(out, overwrite=True):
        raise KeyboardInterrupt
    assert (out / "result.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_overwrite_leaves_foreign_directories_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(OutputError, match="not written by linearize"):
        OutputDirectory(tmp_path / "photos", overwrite=True)


def test_what_is_read_is_never_replaced(tmp_path: Path) -> None:
    model = finished(tmp_path / "model")
    for target in (model, tmp_path):
        with pytest.raises(UsageError, match="which is read"):
            OutputDirectory(target, overwrite=True, sources=(model,))


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        OutputDirectory(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match=r"out is a file"):
        OutputDirectory(tmp_path / "out" / "below")


def stop(path: Path, error: BaseException | None, *, keep: bool) -> None:
    """Write something, then end with `error`, or with a disk that is full if None."""
    with OutputDirectory(path) as out:
        (out.path / "checkpoint").write_text("x")
        out.keep = keep
        if error is not None:
            raise error
        Path("/dev/full").write_text("x" * 100_000)


def test_a_failure_leaves_nothing_unless_it_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"):
        stop(tmp_path / "out", ValueError("boom"), keep=False)
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="boom"):
        stop(tmp_path / "out", ValueError("boom"), keep=True)
    assert names(tmp_path) == ["out.partial"]


def test_an_unfinished_run_is_resumed_or_discarded_on_request(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "checkpoint").write_text("x")
    with pytest.raises(OutputError, match=r"--resume to continue it or --overwrite"):
        OutputDirectory(tmp_path / "out")
    with OutputDirectory(tmp_path / "out", resume=True) as out:
        assert (out.path / "checkpoint").exists()
    assert partial.exists(), "a resumed run that stops again can be resumed again"
    with OutputDirectory(tmp_path / "out", overwrite=True) as out:
        assert names(out.path) == []
    assert not partial.exists()


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="needs about 1000000000"):
        OutputDirectory(tmp_path / "out", needs=10**18)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_becomes_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk full"):
        stop(tmp_path / "out", None, keep=False)
    assert names(tmp_path) == []
    with pytest.raises(OutputError, match="continue with --resume"):
        stop(tmp_path / "out", None, keep=True)
    assert names(tmp_path) == ["out.partial"]


WRITERS = {
    "torch": "torch.save(torch.zeros(9999), p / 'x')",
    "safetensors": "safetensors.torch.save_file({'a': torch.zeros(9999)}, p / 'x')",
    "python": "(p / 'x').write_bytes(bytes(39_996))",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_s_lack_of_room_is_recognised(tmp_path: Path, writer: str) -> None:
    script = f"""
import pathlib, resource, safetensors.torch, torch
from linearize.output import is_full
p = pathlib.Path({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {WRITERS[writer]}
except Exception as error:
    assert is_full(error), repr(error)
else:
    raise SystemExit("written after all")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    assert not is_full(FileNotFoundError(2, "no such file"))
    assert not is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
