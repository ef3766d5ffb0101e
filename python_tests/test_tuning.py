"""Tuned configurations: saved, found again, the nearest where none fits, and broken files named."""

import json
from pathlib import Path

import pytest
import torch

from lightkernels._core import env, tuning

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path)
    monkeypatch.setattr(tuning, "PACKAGED", tmp_path / "packaged")
    tuning.entries.cache_clear()
    yield tmp_path / "tuned" / "cpu"
    tuning.entries.cache_clear()


def entry(warps, primitive="fwd", **key):
    return {"pass": primitive, "key": key, "config": {"warps": warps}}


def test_saved_and_found(folder):
    assert tuning.lookup("op", "fwd", CPU, {"c": 64}) is None
    path = tuning.save("op", CPU, [entry(4, c=64, dtype="float32"), entry(8, "bwd_x", c=64, dtype="float32")])
    assert path == folder / "op.json"
    assert tuning.lookup("op", "fwd", CPU, {"c": 64, "dtype": "float32"}) == ({"warps": 4}, str(path), 0.0)
    assert tuning.lookup("op", "bwd_x", CPU, {"c": 64, "dtype": "float32"}).config == {"warps": 8}
    assert tuning.lookup("op", "bwd_w", CPU, {"c": 64, "dtype": "float32"}) is None
    assert tuning.lookup("other", "fwd", CPU, {"c": 64, "dtype": "float32"}) is None


def test_nearest_by_logarithm():
    tuning.save("op", CPU, [entry(1, c=16, n=1), entry(2, c=64, n=1), entry(4, c=1024, n=1)])
    for c, warps, distance in ((16, 1, 0), (24, 1, 0.585), (40, 2, 0.678), (200, 2, 1.644), (300, 4, 1.771)):
        found = tuning.lookup("op", "fwd", CPU, {"c": c, "n": 1})
        assert (found.config, found.distance) == ({"warps": warps}, pytest.approx(distance, abs=1e-3))
    assert tuning.lookup("op", "fwd", CPU, {"c": 16, "n": 4}).distance == pytest.approx(2)


def test_strings_and_names_must_be_equal():
    tuning.save("op", CPU, [entry(4, c=64, dtype="float32")])
    assert tuning.lookup("op", "fwd", CPU, {"c": 64, "dtype": "bfloat16"}) is None
    assert tuning.lookup("op", "fwd", CPU, {"c": 64}) is None
    assert tuning.lookup("op", "fwd", CPU, {"c": 64, "dtype": "float32", "k": 3}) is None


def test_saving_replaces_equal_keys_alone(folder):
    tuning.save("op", CPU, [entry(1, c=16, n=2), entry(2, c=64, n=2)])
    path = tuning.save("op", CPU, [entry(8, n=2, c=16)])
    assert tuning.lookup("op", "fwd", CPU, {"c": 16, "n": 2}).config == {"warps": 8}
    assert tuning.lookup("op", "fwd", CPU, {"c": 64, "n": 2}).config == {"warps": 2}
    data = json.loads(path.read_text())
    assert data["schema"] == tuning.SCHEMA
    assert len(data["entries"]) == 2
    assert [p.name for p in folder.iterdir()] == ["op.json"]


def test_own_file_before_the_packaged_one():
    packaged = tuning.PACKAGED / "cpu" / "op.json"
    packaged.parent.mkdir(parents=True)
    packaged.write_text(json.dumps({"schema": tuning.SCHEMA, "entries": [entry(1, c=16), entry(2, c=64)]}))
    path = tuning.save("op", CPU, [entry(8, c=16)])
    assert tuning.lookup("op", "fwd", CPU, {"c": 16}) == ({"warps": 8}, str(path), 0.0)
    assert tuning.lookup("op", "fwd", CPU, {"c": 64}) == ({"warps": 2}, str(packaged), 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON: "),
        ("[]", f"must have schema {tuning.SCHEMA}; delete or tune again"),
        ('{"schema": 0, "entries": []}', f"must have schema {tuning.SCHEMA}; delete or tune again"),
        ('{"schema": 1, "entries": [{"pass": "fwd", "us": 1}]}', "lacks config, key"),
    ],
)
def test_broken_file_is_named(folder, text, message):
    folder.mkdir(parents=True)
    path = folder / "op.json"
    path.write_text(text)
    for call in (lambda: tuning.lookup("op", "fwd", CPU, {"c": 1}), lambda: tuning.save("op", CPU, [entry(1, c=1)])):
        with pytest.raises(ValueError, match=r"^tuned configurations: ") as error:
            call()
        assert str(path) in str(error.value)
        assert message in str(error.value)
    assert path.read_text() == text


def test_interrupted_save_leaves_the_old_file(monkeypatch):
    path = tuning.save("op", CPU, [entry(1, c=16)])
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        tuning.save("op", CPU, [entry(object(), c=16)])
    assert path.read_bytes() == before

    def stopped(self, target):
        assert json.loads(Path(self).read_text())["entries"] == [entry(2, c=16)]  # whole before it takes the name
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        tuning.save("op", CPU, [entry(2, c=16)])
    assert path.read_bytes() == before
    tuning.entries.cache_clear()
    assert tuning.lookup("op", "fwd", CPU, {"c": 16}).config == {"warps": 1}
