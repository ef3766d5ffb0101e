"""Finding the fastest backend and tile: what is written, what is refused, and that automatic choice follows."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from lightkernels import cli, ops
from lightkernels._core import backends, env, tuning
from lightkernels._core.record import Recorder
from lightkernels._core.tuner import Call, Truth, Tuner, neighbours

CPU = torch.device("cpu")
NAMES = ("cpu", "torch")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path)
    tuning.entries.cache_clear()
    yield tmp_path / "tuned" / "cpu"
    tuning.entries.cache_clear()


def call_of(name, layout="nchw"):
    cases = importlib.import_module(f"lightkernels.ops.{name}.cases").CASES
    sample = next(case for case in cases if "core" in case.tags).build(layout=layout)
    with Recorder([getattr(ops, name).OP]) as recorder, torch.no_grad():
        getattr(getattr(ops, name), name)(*sample.args, **sample.kwargs)
    ((op, args, asked),) = recorder.calls
    assert asked == "auto"
    return Call.of(op, args)


def clock(*seconds):
    """Gives out the times in turn; runs the calls as a real one does."""
    left = list(seconds)

    def timed(run):
        run()
        return left.pop(0)

    return timed


@pytest.mark.parametrize("name", ["multi_dwconv2d", "rsdc2d", "condensed_conv2d", "mldn_block"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_fastest_right_backend_of_every_pass_is_written(name, layout):
    call = call_of(name, layout)
    passes = len(call.op.kinds)
    refused: list[str] = []
    tuner = Tuner(clock(*[2e-6, 3e-6] * (passes - 1), 3e-6, 2e-6), NAMES, refused=refused.append)
    found = list(tuner.entries(call))
    assert refused == []
    assert [e["pass"] for e in found] == [f"auto {kind}" for kind in call.op.kinds]
    assert [e["config"]["backend"] for e in found] == ["cpu"] * (passes - 1) + ["torch"]
    assert all(e["key"] == tuning.key_of(call.spec) and e["us"] == pytest.approx(2) for e in found)
    assert found[0]["others"] == pytest.approx({"cpu": 2, "torch": 3})


def test_a_wrong_or_failing_backend_is_refused(monkeypatch):
    call = call_of("rsdc2d")
    modules = {name: call.op.backends[name].module for name in NAMES}
    right = modules["cpu"].fwd
    monkeypatch.setattr(modules["cpu"], "fwd", lambda *args: right(*args) * 1.01)

    def fail(*args):
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(modules["torch"], "bwd_x", fail)
    refused: list[str] = []
    found = list(Tuner(clock(1, 1, 1, 1), NAMES, refused=refused.append).entries(call))
    assert [(e["pass"], list(e["others"])) for e in found] == [
        ("auto fwd", ["torch"]), ("auto bwd_x", ["cpu"]), ("auto bwd_w", ["cpu", "torch"])
    ]  # fmt: skip
    assert len(refused) == 2
    assert refused[0].startswith("rsdc2d fwd on cpu: cpu fwd: relative error 0.01 ")
    assert refused[1] == "rsdc2d bwd_x on torch: no room"


class Tile(NamedTuple):
    rows: int
    warps: int


class Tiled:
    """A call whose kernel is right with every tile but those of more than 4 warps."""

    op = SimpleNamespace(name="op")
    device = CPU

    def __init__(self):
        self.spec = SimpleNamespace(tuned_by=("c", "dtype"), c=8, dtype=torch.float32, device="cpu")
        self.tiles: list[Tile] = []

    def on(self, backend, kind):
        assert backend == "triton"
        spec = SimpleNamespace(**vars(self.spec), cache={})

        def run():
            tile = tuning.tile("op", spec, kind, Tile, lambda: Tile(4, 2), kernel="dot")
            self.tiles.append(tile)
            return torch.full((3,), 1.0 if tile.warps <= 4 else 2.0)

        return run


def test_the_fastest_tile_is_found_by_steps_and_taken_afterwards():
    call = Tiled()

    def seconds(run):
        run()
        rows, warps = call.tiles[-1]
        return 1 + abs(math.log2(rows / 16)) + abs(math.log2(warps / 4))

    refused: list[str] = []
    tuner = Tuner(seconds, tries=24, refused=refused.append)
    entry = tuner.tile(call, "fwd", Truth([torch.ones(3)], 1e-6))
    key = {"c": 8, "dtype": "float32", "kernel": "dot"}
    assert entry == {"pass": "triton fwd", "key": key, "config": {"rows": 16, "warps": 4}, "us": 1e6}
    assert refused
    assert all("warps': 8" in text for text in refused)
    assert len(set(call.tiles)) <= 25
    tuning.save("op", CPU, [entry])
    call.on("triton", "fwd")()
    assert call.tiles[-1] == Tile(16, 4)
    call.on("triton", "bwd_x")()
    assert call.tiles[-1] == Tile(4, 2)


def test_a_tile_of_an_earlier_run_is_kept_if_none_is_faster():
    call = Tiled()

    def seconds(run):
        run()
        return 1.0 if call.tiles[-1] == Tile(64, 4) else 2.0

    known = {"rows": 64, "warps": 4}
    key = {"c": 8, "dtype": "float32", "kernel": "dot"}
    tuning.save("op", CPU, [{"pass": "triton fwd", "key": key, "config": known}])
    entry = Tuner(seconds, tries=4).tile(call, "fwd", Truth([torch.ones(3)], 1e-6))
    assert entry is not None
    assert (entry["config"], entry["us"]) == (known, 1e6)


def test_tries_bound_the_tiles_that_are_timed():
    call = Tiled()
    entry = Tuner(lambda run: (run(), 1.0)[1], tries=3).tile(call, "fwd", Truth([torch.ones(3)], 1e-6))
    assert entry is not None
    assert entry["config"] == {"rows": 4, "warps": 2}
    assert len(set(call.tiles)) == 4


def test_neighbours_stay_near_the_first_tile():
    near = neighbours({"rows": 8, "warps": 1}, {"rows": 2, "warps": 1})
    assert near == [{"rows": 4, "warps": 1}, {"rows": 8, "warps": 2}]


def test_automatic_choice_takes_what_was_fastest_near_the_call_in_each_pass(monkeypatch):
    call = call_of("rsdc2d")
    monkeypatch.setattr(tuning, "device_name", lambda device: "sm90-X")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends.Backend, "why_not", lambda self, spec: None)
    table = {n: backends.Backend(n, "lightkernels.ops.rsdc2d") for n in ("cuda", "triton", "torch")}
    winners = {"fwd": "cuda", "bwd_x": "triton", "bwd_w": "torch"}
    key = tuning.key_of(call.spec)
    tuning.save("rsdc2d", CPU, [
        {"pass": f"auto {kind}", "key": key, "config": {"backend": name}} for kind, name in winners.items()
    ])  # fmt: skip

    def chosen(n):
        spec = SimpleNamespace(**{name: getattr(call.spec, name) for name in call.spec.tuned_by}, device="cuda")
        spec.tuned_by, spec.n = call.spec.tuned_by, n
        return backends.choose_each("rsdc2d", table, spec, "auto", tuple(winners))

    near = chosen(4 * call.spec.n)
    assert {kind: choice.backend.name for kind, choice in near.items()} == winners
    assert near["bwd_w"].reasons == {
        name: f"torch was faster on sm90-X; backend={name!r} takes it" for name in ("cuda", "triton")
    }
    far = chosen(2**7 * call.spec.n)
    assert {choice.backend.name for choice in far.values()} == {"torch"}
    assert "never timed near this size on sm90-X" in far["fwd"].reasons["cuda"]


def network():
    import lightkernels

    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), lightkernels.RSDC2d(8, 8, 5, scope="layer"))


def test_the_command_times_each_call_of_a_network_once_and_saves(monkeypatch, capsys, folder):
    pytest.importorskip("typer")
    from lightkernels.cli import tune
    from lightkernels.cli.terminal import console

    options = tune.Options([], [f"{__name__}:network"], "quick", 2, 6, ["float32"], 0, "cpu")
    assert tune.tune(console(), CPU, options, Tuner(lambda run: 1e-3, NAMES)) == 0
    entries = json.loads((folder / "rsdc2d.json").read_text())["entries"]
    assert sorted((e["pass"], e["key"]["layout"]) for e in entries) == sorted(
        (f"auto {kind}", layout) for kind in ("fwd", "bwd_x", "bwd_w") for layout in ("nchw", "nhwc")
    )
    printed = capsys.readouterr().out
    assert printed.count("rsdc2d n=2 c=8") == 2
    assert str(folder / "rsdc2d.json") in printed


def test_of_a_network_only_the_operators_that_are_named():
    pytest.importorskip("typer")
    from lightkernels.cli import tune

    options = tune.Options([], [f"{__name__}:network"], "quick", 2, 6, ["float32"], 0, "cpu")
    for names, count in ([], 4), (["rsdc2d"], 4), (["multi_dwconv2d"], 0):
        assert len(list(tune.calls(CPU, replace(options, names=names)))) == count


def test_every_operator_has_calls_to_tune():
    pytest.importorskip("typer")
    from lightkernels.cli import tune

    for name, count in (("multi_dwconv2d", 8), ("rsdc2d", 12), ("condensed_conv2d", 2)):
        cases = importlib.import_module(f"lightkernels.ops.{name}.cases").CASES
        assert len(tune.few([case for case in cases if "bench" in case.tags])) == count
    options = tune.Options(["condensed_conv2d"], [], "quick", 1, 4, ["float32"], 0, "meta")
    made = [(c.op.name, c.spec.layout) for c in tune.calls(torch.device("meta"), options)]
    assert made == [("condensed_conv2d", layout) for _ in range(2) for layout in ("nchw", "nhwc")]


def test_the_command_says_what_it_cannot_do(capsys):
    pytest.importorskip("typer")
    assert cli.main(["tune", "--device", "cpu"]) == 1
    assert "tune is for GPUs" in capsys.readouterr().out
    assert cli.main(["tune", "nothing", "--device", "cpu"]) == 1
    assert "no operator is called 'nothing'" in capsys.readouterr().out
