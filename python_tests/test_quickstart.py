"""The main job: its files, its exit codes, its end by Ctrl-C; in full as a slow test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import torch
from cli_helpers import command, environment

from lightkernels import cli
from lightkernels._core import measure
from lightkernels.cli import quickstart
from lightkernels.train import check, checkpoint, digits, loop, picture
from lightkernels.train.loop import History, Recipe, accuracy, fit, predict

TINY = ["quickstart", "--epochs", "1", "--no-speed", "--out"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the images, and an allocator left as it is."""
    train, test = digits.load()
    few = digits.Split(train.images[:256], train.labels[:256]), digits.Split(test.images[:100], test.labels[:100])
    monkeypatch.setattr(digits, "load", lambda: few)
    monkeypatch.setattr(measure, "steady_memory", lambda: True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_split_is_fixed_and_stratified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (train, test), (again, _) = digits.load(), digits.load()
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(train.images, again.images)
    assert train.images.shape[1:] == (3, 16, 16)
    assert 0 <= float(train.images.min()) < float(train.images.max()) <= 1
    assert all(34 <= int(count) <= 37 for count in torch.bincount(test.labels))
    both = {tuple(image.flatten().tolist()) for image in train.images[:, 0]}
    assert not any(tuple(image.flatten().tolist()) in both for image in test.images[:, 0])


def test_leaves_a_picture_and_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, str(tmp_path)]) == 1  # one epoch is too few, and the exit code says so
    printed = capsys.readouterr().out
    assert "below 97 %" in printed
    assert len(re.findall(r"tail\.depthwise .* 3\+5\+7 concat +nhwc +\w+", printed)) == 9
    assert re.search(r"logits +\d.\d\de-\d\d .* within", printed)
    assert names(tmp_path) == ["checkpoint.pt", "quickstart.png"]
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")

    found = checkpoint.load(tmp_path / "checkpoint.pt")
    right, images = found.results["right"], found.results["images"]
    assert f"{100 * right / images:.2f} % of {images} test images" in printed
    assert cli.main(["evaluate", str(tmp_path / "checkpoint.pt")]) == 0
    evaluated = capsys.readouterr().out
    assert evaluated.count(f"{100 * right / images:.2f} % ({right} of {images})") == 2


def test_training_repeats_itself_and_reloads() -> None:
    train, test = digits.load()
    outputs, models = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(quickstart.models.pydmobilenet(11, 0.25))
        told: list[int] = []
        history = fit(models[-1], train, test, Recipe(epochs=1), seed, lambda h, told=told: told.append(len(h.losses)))
        assert told == [1, 2, 3, 4, 4]
        assert history.total == 4
        assert history.accuracies == [accuracy(models[-1], test)]
        assert history.mean_losses() == [pytest.approx(sum(history.losses) / 4)]
        outputs.append(predict(models[-1], test.images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("reached", "difference", "code"), [(0.98, 0.0, 0), (0.97, 0.0, 0), (0.96, 0.0, 1), (0.98, 2.0, 1)]
)
def test_exit_code(
    reached: float, difference: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = torch.nn.functional.one_hot(digits.load()[1].labels, 10).float()
    answers[: round(100 * (1 - reached))] = -answers[: round(100 * (1 - reached))]
    monkeypatch.setattr(quickstart, "predict", lambda model, images: answers)
    monkeypatch.setattr(quickstart, "fit", lambda *args: History(1, 1, [0.5], [reached]))
    agreement = check.Agreement("x: output", difference, difference, 0.5, 1.0)
    monkeypatch.setattr(check, "compare_layers", lambda *args: [agreement])
    monkeypatch.setattr(picture, "draw", lambda *args: None)
    assert cli.main([*TINY, str(tmp_path)]) == code


@pytest.mark.parametrize("place", ["training", "checkpoint", "checks", "picture"])
def test_ctrl_c_leaves_nothing_half_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(*args: object, **kwargs: object) -> None:
        for value in args:
            if isinstance(value, Path):
                value.write_bytes(b"half")
        raise KeyboardInterrupt

    target, name = {
        "training": (loop, "accuracy"),
        "checkpoint": (torch, "save"),
        "checks": (check, "compare_outputs"),
        "picture": (picture.Figure, "savefig"),
    }[place]
    if name == "savefig":
        monkeypatch.setattr(target, name, lambda self, path, **kwargs: half(path))
    else:
        monkeypatch.setattr(target, name, half)
    monkeypatch.setattr(quickstart, "MODEL", "pydmobilenet_depthwise_29_050")
    assert cli.main([*TINY, str(tmp_path)]) == 130
    printed = capsys.readouterr().err
    assert printed.strip() == "lightkernels: interrupted; no file is half-written"
    assert names(tmp_path) == ([] if place in ("training", "checkpoint") else ["checkpoint.pt"])
    if names(tmp_path):
        checkpoint.load(tmp_path / "checkpoint.pt").build()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_real_ctrl_c(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "lightkernels", "quickstart", "--out", str(tmp_path)]
    with subprocess.Popen(
        run,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONUNBUFFERED="1"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("machine"):
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "lightkernels: interrupted; no file is half-written"
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "fit", None)
    (tmp_path / "file").write_text("not a folder")
    assert cli.main([*TINY, str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("lightkernels: ")


def test_evaluate_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path / "none.pt")]) == 1
    assert "No such file" in capsys.readouterr().err
    path = tmp_path / "old.pt"
    for content in (b"root:x:0:0:root:/root:/bin/bash\n", b"", b"PK\x03\x04", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        assert cli.main(["evaluate", str(path)]) == 1
        assert "must be a file that quickstart wrote" in capsys.readouterr().err
    torch.save({"format": checkpoint.FORMAT, "version": 0, "written_by": "0.0.1"}, path)
    assert cli.main(["evaluate", str(path)]) == 1
    assert "format version 1; got version 0, written by lightkernels 0.0.1" in capsys.readouterr().err
    state = quickstart.models.create_model("pydmobilenet_add_29_025", num_classes=10).state_dict()
    checkpoint.save(path, checkpoint.Checkpoint("pydmobilenet_add_29_025", 10, state, "other images"))
    assert cli.main(["evaluate", str(path)]) == 1
    assert "must be trained on sklearn digits, 16x16; got other images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["quickstart", "evaluate"])
def test_a_device_that_is_not_here(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, *(["x.pt"] if name == "evaluate" else []), "--device", "cuda:77"]) == 2
    assert "Invalid value for '--device'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["--device=meta", f"--seed={2**64}"])
def test_values_that_train_nothing(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quickstart", value, "--out", str(tmp_path / "out")]) == 2
    assert f"Invalid value for '{value.partition('=')[0]}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_full(seed: int, tmp_path: Path) -> None:
    start = time.perf_counter()
    done = command("quickstart", "--seed", str(seed), "--no-compile", "--out", str(tmp_path), OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.perf_counter() - start < 120
    assert "goal reached" in done.stdout
    assert names(tmp_path) == ["checkpoint.pt", "quickstart.png"]
