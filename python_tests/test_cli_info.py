"""``lightkernels info`` and ``explain``: true, complete, and never a crash."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from cli_helpers import command

import lightkernels
from lightkernels import cli
from lightkernels._core import native
from lightkernels.cli import explain, info

EXTRAS = ("typer", "rich", "matplotlib", "sklearn", "triton")
CALL = "--x 8x64x32x32 --kernels 3,5,7 --dtype float32 --layout nhwc --combine add --stride 2 --backend cpu"


def test_info_has_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for name in info.PROBES:
        assert f"\n{name} " in f"\n{printed}" or (name == "backends" and "\nmulti_dwconv2d: what would run" in printed)
    for text in (f"torch {torch.__version__}", f"lightkernels {lightkernels.__version__}", "bfloat16", "nhwc"):
        assert text in printed
    assert "failed" not in printed


def test_info_as_json_is_what_explain_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(info.PROBES)
    rows = found["backends"]["multi_dwconv2d"]
    assert {(row["dtype"], row["layout"]) for row in rows if row["device"] == "cpu"} == {
        (dtype, layout) for dtype in explain.DTYPES for layout in ("nchw", "nhwc")
    }
    for row in rows:
        assert row["backend"] not in row["others"]
    x, w = torch.randn(2, 5, 9, 8), [torch.randn(5, 1, k, k) for k in (3, 5, 7)]
    first = next(row for row in rows if (row["dtype"], row["layout"]) == ("float32", "nchw"))
    assert first["backend"] == lightkernels.explain("multi_dwconv2d", x, w).chosen


@pytest.mark.parametrize("name", info.PROBES)
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_a_broken_probe_stops_nothing(
    name: str, flag: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise OSError("the disk is on fire")

    for other in info.PROBES:
        monkeypatch.setitem(info.PROBES, other, broken if other == name else lambda: "fine")
    assert cli.main(["info", *flag]) == 0
    printed = capsys.readouterr().out
    assert printed.count("OSError: the disk is on fire") == 1
    assert printed.count("fine") == len(info.PROBES) - 1


def test_every_probe_survives_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(native, "load", broken)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(torch, "get_num_threads", broken)
    monkeypatch.setattr(info.platform, "platform", broken)
    monkeypatch.setattr(info.subprocess, "run", broken)
    monkeypatch.setattr(info, "Path", broken)
    found = info.collect()
    assert found["native core"] == {"failed": "RuntimeError: broken"}
    assert info.text(found).count("RuntimeError: broken") >= 7
    assert found["versions"]["torch"] == torch.__version__


def test_info_shows_why_the_native_core_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        native, "load", lambda name, needed=None: (None, "libgomp.so.1: cannot open shared object file")
    )
    text = info.text(info.collect())
    assert "native core       not loaded: libgomp.so.1: cannot open shared object file" in text
    assert "  cpu        libgomp.so.1: cannot open shared object file" in text


def test_info_names_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"baseline": (True, True), "avx2": (True, True), "avx512": (True, False), "amx": (False, False)}
    module = SimpleNamespace(isa=lambda: "avx2", isas=lambda: sets)
    monkeypatch.setattr(native, "load", lambda name, needed=None: (module, None))
    found = info.instruction_sets()
    assert found["baseline"] == "usable"
    assert found["avx2"] == "in use"
    assert found["avx512"] == "built, not supported here"
    assert found["amx"] == "not built, not supported here"


def test_info_and_explain_need_torch_alone() -> None:
    told = command("info", hidden=EXTRAS, LIGHTKERNELS_BACKEND="torch")
    assert (told.returncode, told.stderr) == (0, "")
    variables = next(line for line in told.stdout.splitlines() if line.startswith("environment"))
    assert "LIGHTKERNELS_BACKEND torch" in variables and "OMP_NUM_THREADS 1" in variables
    assert "multi_dwconv2d: what would run" in told.stdout
    assert "nchw torch, nhwc torch" in told.stdout
    told = command("explain", "multi_dwconv2d", *CALL.split(), "--backend", "reference", hidden=EXTRAS)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("multi_dwconv2d: reference (asked for: reference)\n")


def test_explain_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "multi_dwconv2d", *CALL.split()]) == 0
    x = torch.zeros(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    weights = [torch.zeros(64, 1, k, k) for k in (3, 5, 7)]
    expected = lightkernels.explain("multi_dwconv2d", x, weights, combine="add", stride=2, backend="cpu")
    assert capsys.readouterr().out == f"{expected}\n"


def test_explain_of_other_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    args = "--x 2x7x8x9 --kernels 3,5 --split --bias 7 --dilations 1,2 --stride 2,1 --dtype float64 --json"
    assert cli.main(["explain", "multi_dwconv2d", *args.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    x, bias = torch.zeros(2, 7, 8, 9, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    weights = [torch.zeros(4, 1, 3, 3, dtype=torch.float64), torch.zeros(3, 1, 5, 5, dtype=torch.float64)]
    call = {"split": True, "dilations": (1, 2), "stride": (2, 1)}
    expected = lightkernels.explain("multi_dwconv2d", x, weights, bias, **call)
    assert (found["flops"], found["bytes"], found["chosen"]) == (expected.flops, expected.bytes, expected.chosen)
    assert cli.main(["explain", "multi_dwconv2d", "--x", "2x7x8x9", "--weights", "7x1x3x3,7x1x5x5"]) == 0


def test_explain_for_a_device_that_is_not_here_and_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    args = "--x 4096x1024x512x512 --kernels 3 --device cuda --dtype bfloat16"  # 2 TiB
    assert cli.main(["explain", "multi_dwconv2d", *args.split()]) == 0
    assert "  cpu        the tensors are on cuda, not on the CPU\n" in capsys.readouterr().out
    calls = ("multi_dwconv2d --x 2x8x9x9 --kernels 3,5", "rsdc2d --x 2x8x9x9 --weight 8x8x9 --taps 1x9 --kernel_size 5")
    for call, dtype, layout in itertools.product(calls, ("float32", "bfloat16"), ("nchw", "nhwc")):
        args = [*call.split(), "--device", "cuda", "--dtype", dtype, "--layout", layout]
        assert cli.main(["explain", *args]) == 0
        assert f"  layout     {layout}, no copy\n" in capsys.readouterr().out


def test_explain_of_taps(capsys: pytest.CaptureFixture[str]) -> None:
    args = "--x 2x8x9x9 --weight 4x2x9 --taps 4x9 --kernel_size 5 --groups 4 --dilation 2,1"
    call = {"kernel_size": 5, "groups": 4, "dilation": (2, 1)}
    tensors = (torch.zeros(2, 8, 9, 9), torch.zeros(4, 2, 9), torch.arange(9).expand(4, 9))
    for text, padding in (("same", "same"), ("3", 3), ("1,2", (1, 2))):
        assert cli.main(["explain", "rsdc2d", *args.split(), "--padding", text]) == 0
        expected = lightkernels.explain("rsdc2d", *tensors, **call, padding=padding)
        assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ("multi_dwconv2d --x 8x64x32 --kernels 3", 1, "x must have 4 dimensions [N, C, H, W]; got [8, 64, 32]"),
        ("multi_dwconv2d --x 8x64x32x32 --kernels 4", 1, "must have an odd kernel size; got 4"),
        ("multi_dwconv2d --x 8x64x32x32 --kernels 3 --combine mul", 1, "combine must be one of"),
        ("multi_dwconv2d --x 8x64 --kernels 3", 1, "x must have 4 dimensions"),
        (f"multi_dwconv2d --x {'x'.join(4 * ['9999999999'])} --kernels 3", 1, "no tensor has the shape 9999999999x"),
        ("multi_dwconv2d --x axb --kernels 3", 2, "invalid shape value: 'axb'"),
        ("multi_dwconv2d --x 8x-64x32x32 --kernels 3", 2, "invalid shape value: '8x-64x32x32'"),
        ("multi_dwconv2d --x 8x64x32x32 --kernels 3 --device gpu", 2, "invalid device value: 'gpu'"),
        ("multi_dwconv2d --kernels 3", 2, "required: --x"),
        ("rsdc2d --x 1x4x8x8 --weight 4x4x9 --taps 1x9", 2, "required: --kernel_size"),
        ("multi_dwconv2d --x 8x64x32x32", 2, "one of the arguments --weights --kernels is required"),
        ("no_such_op --x 8x64x32x32", 2, "multi_dwconv2d"),
        ("", 2, ""),
    ],
)
def test_explain_of_wrong_arguments(args: str, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", *args.split()]) == code
    assert text in capsys.readouterr().err
