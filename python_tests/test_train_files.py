"""Files are whole or absent; a checkpoint is one of ours and of this version, or a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightkernels import models
from lightkernels.train import checkpoint
from lightkernels.train.checkpoint import Checkpoint, CheckpointError
from lightkernels.train.files import atomic_write

MODEL = "pydmobilenet_add_29_025"


def stored(tmp_path: Path, **changes: object) -> Path:
    """A checkpoint with some of its fields changed behind the writer's back."""
    path = tmp_path / "checkpoint.pt"
    state = models.create_model(MODEL, num_classes=10).state_dict()
    checkpoint.save(path, Checkpoint(MODEL, 10, state, "data", results={"right": 3}))
    if changes:
        torch.save(torch.load(path, weights_only=True) | changes, path)
    return path


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_write_changes_nothing(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
    target = tmp_path / "deep" / "file.txt"
    if before is not None:
        target.parent.mkdir()
        target.write_text(before)

    def write() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in target.parent.iterdir()] == ([] if before is None else ["file.txt"])
    assert before is None or target.read_text() == before


def test_a_write_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    for text in ("one", "two"):
        with atomic_write(target) as temporary:
            temporary.write_text(text)
            assert temporary.parent == target.parent
        assert target.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_round_trip_gives_identical_predictions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.create_model(MODEL, num_classes=10)
    x = torch.randn(4, 3, 16, 16)
    model(x)
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, Checkpoint(MODEL, 10, model.state_dict(), "data", results={"right": 3}))
    found = checkpoint.load(path)
    assert (found.model, found.num_classes, found.data, found.results) == (MODEL, 10, "data", {"right": 3})
    built = found.build()
    assert not built.training
    assert torch.equal(built(x), model.eval()(x))


def test_interrupted_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path)
    before = path.read_bytes()

    def half(content: object, file: Path) -> None:
        Path(file).write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, Checkpoint(MODEL, 10, {}, "data"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_another_version_is_named(tmp_path: Path) -> None:
    path = stored(tmp_path, version=2, written_by="9.9")
    with pytest.raises(CheckpointError, match=r"format version 1; got version 2, written by lightkernels 9\.9\. Hint"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "other"}, "must be a file that quickstart wrote; got 'another file'"),
        ({"model": 3, "state": None}, "must hold model, state; got 'a damaged file'"),
    ],
)
def test_wrong_content(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        checkpoint.load(stored(tmp_path, **changes))


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="must be a file that quickstart wrote"):
        checkpoint.load(path)
    path.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="must be a file that quickstart wrote"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="another file"):
        checkpoint.load(path)
    torch.save({"run": torch.nn.Linear(1, 1)}, path)  # would run code if it were loaded without weights_only
    with pytest.raises(CheckpointError, match="must be a file that quickstart wrote"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize("changes", [{"model": "resnext"}, {"num_classes": 5}, {"options": {"depth": "x"}}])
def test_weights_that_do_not_fit(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        checkpoint.load(stored(tmp_path, **changes)).build()
