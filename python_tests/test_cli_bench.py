"""``lightkernels bench``: outputs checked first, every candidate in the file, the best of PyTorch as the measure."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("typer")

import torch

from lightkernels import cli
from lightkernels._core import measure
from lightkernels.cli import bench
from lightkernels.ops.multi_dwconv2d import baselines, cases
from lightkernels.ops.rsdc2d import cases as rsdc


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two little bench cases, hardly timed, and an allocator left as it is."""
    small = [
        cases.case(f"bench_{name}_2x4x6x5", (2, 4, 6, 5), (3, 5), "bench", bias=False, combine=name)
        for name in ("concat", "add")
    ]
    monkeypatch.setattr(cases, "CASES", (*cases.CASES[:3], *small))
    monkeypatch.setattr(measure, "steady_memory", lambda: True)
    slow = measure.interleaved
    monkeypatch.setattr(measure, "interleaved", lambda calls, **more: slow(calls, rounds=1, min_time=0.0))


def test_every_case_pass_and_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "times.csv"
    assert cli.main(["bench", "--shapes", "all", "--csv", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("concat_2x4x6x5") == printed.count("add_2x4x6x5") == 1
    assert "torch.compile: not measured" in printed
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name in ("concat", "add"):
        entries = [*baselines.ours(name), *baselines.entries((3, 5), name)]
        for kind in measure.PASSES:
            found = [row for row in rows if row["case"] == f"{name}_2x4x6x5" and row["pass"] == kind]
            assert {row["candidate"] for row in found} == {entry.label for entry in entries}
            assert {row["candidate"] for row in found if row["ours"] == "1"} == {
                "lightkernels nchw",
                "lightkernels nhwc",
            }
            best = min((row for row in found if row["ours"] == "0"), key=lambda row: float(row["seconds"]))
            for row in found:
                assert row["best"] == best["candidate"]
                assert float(row["over_best"]) == pytest.approx(float(best["seconds"]) / float(row["seconds"]))


def test_an_operator_with_other_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shape, values = (2, 4, 6, 5), {"scope": "group", "groups": 2, "bias": False}
    monkeypatch.setattr(rsdc, "CASES", (rsdc.case("bench_group_2x4x6x5", shape, 6, 5, "bench", **values),))
    assert cli.main(["bench", "rsdc2d", "--shapes", "all"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("group_2x4x6x5") == 1 and "left out" not in printed


def test_quick_is_two_shapes_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    kinds = {case.name.rpartition("_")[0] for case in cases.CASES if "bench" in case.tags}
    names = [case.name for case in cases.CASES if "bench" in case.tags and case.name.rpartition("_")[2] in bench.QUICK]
    assert sorted(names) == sorted(f"{kind}_{shape}" for kind in kinds for shape in bench.QUICK)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype: str) -> None:
    problems = list(bench.problems("multi_dwconv2d", "all", getattr(torch, dtype)))
    assert [problem.name for problem in problems] == ["concat_2x4x6x5", "add_2x4x6x5"]
    assert all(problem.x.dtype == getattr(torch, dtype) for problem in problems)
    assert cli.main(["bench", "--shapes", "all", "--dtype", dtype]) == 0


def test_a_wrong_kernel_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = baselines.multi_dwconv2d
    monkeypatch.setattr(baselines, "multi_dwconv2d", lambda *args, **kwargs: right(*args, **kwargs) * 1.01)
    path = tmp_path / "times.csv"
    assert cli.main(["bench", "--shapes", "all", "--csv", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lightkernels: lightkernels nchw, forward: relative error 0.01 against float64 truth")
    assert error.endswith("not timed\n")
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_case", None)
    (tmp_path / "file").touch()
    assert cli.main(["bench", "--csv", str(tmp_path / "file" / "times.csv")]) == 1
    assert "file" in capsys.readouterr().err


def test_an_operator_without_baselines_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "condensed_conv2d"]) == 1
    assert "condensed_conv2d has no baselines" in capsys.readouterr().out


def test_unknown_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "conv3d"]) == 1
    assert (
        "no operator is called 'conv3d'; there are condensed_conv2d, mldn_block, multi_dwconv2d"
        in capsys.readouterr().out
    )
