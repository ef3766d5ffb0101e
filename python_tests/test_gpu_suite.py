"""The GPU suite rehearsed without a GPU, so that its first run on one does not end at a slip of the pen."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_gpu
import test_gpu_mldn
import test_gpu_rsdc2d
import torch

from lightkernels._core.spec import TensorMeta
from lightkernels.ops.condensed_conv2d.spec import Inputs as CondensedInputs
from lightkernels.ops.condensed_conv2d.spec import Spec as CondensedSpec
from lightkernels.ops.mldn_block.spec import Inputs as BlockInputs
from lightkernels.ops.mldn_block.spec import Spec as BlockSpec
from lightkernels.ops.multi_dwconv2d.op import Spec
from lightkernels.ops.rsdc2d.op import Spec as RsdcSpec

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))
devices = pytest.importorskip("gpu.device")
ops = pytest.importorskip("gpu.ops")
plan = pytest.importorskip("gpu.plan")
rsdc = pytest.importorskip("gpu.rsdc")
mldn = pytest.importorskip("gpu.mldn")
mldn_ops = pytest.importorskip("gpu.mldn_ops")
report = pytest.importorskip("gpu.report")
predicted = pytest.importorskip("gpu.predicted")
ceilings = pytest.importorskip("gpu.ceilings")


def suite(out: Path, *words: str) -> str:
    run = subprocess.run(
        [sys.executable, str(FOLDER / "gpu_suite.py"), "--dry-run", "--out", str(out), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "gpu_results.jsonl").read_text().splitlines()]


def test_a_rehearsal_goes_through_every_part_and_packs_one_archive(tmp_path):
    parts = [word for part in ("env", "install", "tests", "sanitize", "warm", "ops") for word in ("--part", part)]
    printed = suite(tmp_path, *parts, "--limit", "2")
    assert "exit status" not in printed
    found = records(tmp_path)
    assert [r["part"] for r in found] == ["env", "ops", "ops"]
    assert {"commit", "torch", "triton"} <= set(found[0]["facts"])
    assert not [r for r in found if r.get("refused")]
    for r in found[-2:]:
        assert {
            "lightkernels nchw",
            "lightkernels cuda nchw",
            "lightkernels cuda nhwc",
            "eager nchw",
            "eager searched nhwc",
        } <= set(r["times"])
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["gpu_log.txt", "gpu_results.jsonl", "gpu_suite.tar.gz"]
    log = (tmp_path / "gpu_log.txt").read_text()
    assert "CMAKE_ARGS=-DLIGHTKERNELS_CUDA_ARCHS=90a-real" in log
    assert "test_gpu.py -m gpu" in log
    with tarfile.open(tmp_path / "gpu_suite.tar.gz") as archive:
        names = {Path(n).name for n in archive.getnames()}
    assert {"gpu.md", "gpu.csv", "gpu_results.jsonl", "gpu_log.txt"} <= names

    # The next call keeps what was measured and goes on, even after a record that was cut short.
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text((tmp_path / "gpu_results.jsonl").read_text() + '{"part": "ops", "key": "S1')
    suite(tmp_path, "--part", "ops", "--limit", "3", "--resume", str(earlier))
    assert [r["key"] for r in records(tmp_path) if r["part"] == "ops"] == [g.key for g in plan.groups()][:3]


def test_the_plan_is_everything_once_the_most_telling_first():
    found = list(plan.groups())
    total = len(plan.SHAPES) * len(plan.DTYPES) * len(plan.VARIANTS) * len(plan.KINDS)
    assert len(found) == len({g.key for g in found}) == total
    assert found[0].key == "S1 bf16 concat forward"
    head = found[: total // 4]
    assert {g.shape for g in head} == set(plan.SHAPES)
    assert {"bf16", "fp32"} <= {g.dtype for g in head}


def test_all_operators_are_planned_once():
    found = [g.key for g in ops.all_groups()]
    more = [g.key for module in (rsdc, mldn) for g in module.groups()]
    assert len(found) == len(set(found)) == len(list(plan.groups())) + len(more)
    assert found[: ops.FIRST] == [g.key for g in plan.groups()][: ops.FIRST]
    assert found[ops.FIRST : ops.FIRST + len(more)] == more


def test_least_traffic_of_blocks_and_condensed_convolutions_is_their_formula():
    for group in mldn.groups():
        x, weights, g = mldn_ops.tensors(group, SimpleNamespace(dry=False, kind="meta"))
        metas = [TensorMeta.of(t) for t in (x, *weights)]
        if isinstance(group, mldn.CondensedGroup):
            index = TensorMeta.of(torch.empty(4, group.sizes[1] // 4, dtype=torch.int64, device="meta"))
            spec = CondensedSpec.of(CondensedInputs(*metas, index), "relu")
            extra = spec.bytes() - mldn.CondensedGroup(*group.key.split()[:3], "forward").bytes()
            assert 0 <= extra <= 16 * group.sizes[1]  # the index and the norm
        else:
            running = {} if group.training else {"running1": metas[3], "running2": metas[4]}
            sizes = (mldn.LAYERS, mldn.PATHS, mldn.GROWTH, mldn.BOTTLENECK, group.groups)
            values = (*sizes, 1, "xor1", 3, 1e-5, 0.0, 0, 1, group.kind == "step")
            spec = BlockSpec.of(BlockInputs(*metas, **running), *values)
            assert group.bytes() == (spec.training_bytes() if group.kind == "step" else spec.bytes())
            assert g.shape == spec.y_shape
        assert group.flops() == spec.flops() * (3 if group.kind == "step" else 1)
        assert group.forecast() > group.bytes() / 4.3e12


@pytest.mark.parametrize("name", ["B1 bf16 mldn-eval forward", "B1 fp32 mldn-train step", "Q2 bf16 condensed step"])
def test_blocks_and_condensed_convolutions_are_measured_and_checked(name):
    (group,) = [g for g in mldn.groups() if g.key == name]
    record = ops.measure_group(group, devices.Rehearsal())
    assert not record["refused"]
    assert {"eager nchw", "grouped nhwc" if "mldn" in name else "folded nhwc", "lightkernels nhwc"} <= set(
        record["times"]
    )
    assert set(record["times"]) == set(record["errors"])
    assert type(report.group_of(record)) is type(group)
    assert f"| {group.forecast() * 1e6:.1f} |" in report.markdown([record])


def test_least_traffic_of_rsdc2d_is_its_formula_but_for_the_taps():
    for group in rsdc.groups():
        n, c, h, w, _ = group.sizes
        k, count = group.window
        x = TensorMeta((n, c, h, w), (c * h * w, h * w, w, 1), plan.DTYPES[group.dtype], torch.device("cpu"))
        taps = torch.empty(count, rsdc.TAPS, dtype=torch.int64)
        args = (group.filters, k, (1, 1), (k // 2, k // 2), (1, 1), count)
        spec = RsdcSpec.of(x, None, None, TensorMeta.of(taps), *args)
        forward = rsdc.RsdcGroup(group.shape, group.dtype, group.variant, "forward")
        assert forward.bytes() == spec.bytes() - 8 * taps.numel()
        assert forward.flops() == spec.flops()


@pytest.mark.parametrize("group", [g for g in rsdc.groups() if g.shape in ("R5", "L1")][::2], ids=lambda g: g.key)
def test_groups_of_rsdc2d_are_measured_and_checked(group):
    record = ops.measure_group(group, devices.Rehearsal())
    assert not record["refused"]
    assert {"masked nchw", "3x3 nhwc", "lightkernels nchw"} <= set(record["times"])
    assert set(record["times"]) - set(record["errors"]) == {n for n in record["times"] if n.startswith("3x3")}
    assert type(report.group_of(record)) is rsdc.RsdcGroup


def test_a_3x3_is_no_baseline_but_a_measure():
    found = rsdc.RsdcGroup("R5", "bf16", "rsdc5", "forward")
    fields = {"shape": "R5", "dtype": "bf16", "variant": "rsdc5", "kind": "forward", "key": found.key, "part": "ops"}
    times = timed(lightkernels_nhwc=1.5, masked_nhwc=3.0, **{"3x3_nhwc": 1.0})
    record = {**fields, "bytes": 1, "flops": 1, "times": times, "errors": {}, "refused": {}, "peaks": {}}
    _, row = report.rows([record])
    assert row["best"] == "masked nhwc" and row["ratio"] == 2.0
    assert row["short"] == ["2.00x the best, goal 2.5x", "1.50 of a 3x3's time, goal 1.1"]


@pytest.mark.parametrize("variant", list(plan.VARIANTS))
def test_least_traffic_is_the_operator_s_own_formula(variant):
    for shape in plan.SHAPES:
        group = plan.Group(shape, "bf16", variant, "forward")
        n, c, h, w, s = group.sizes
        x = TensorMeta((n, c, h, w), (c * h * w, h * w, w, 1), torch.bfloat16, torch.device("cpu"))
        count = len(group.kernels)
        spec = Spec.of(x, None, None, group.kernels, [c] * count, (s, s), [1] * count, group.combine, False)
        assert group.bytes() == spec.bytes()
        assert group.flops() == spec.flops()


@pytest.mark.parametrize("group", [g for g in plan.groups() if g.shape in ("S3", "S6")][::9], ids=lambda g: g.key)
def test_every_kind_of_group_is_measured_and_checked(group):
    record = ops.measure_group(group, devices.Rehearsal())
    assert not record["refused"]
    assert record["times"].keys() == record["errors"].keys()
    ops.warm(group, devices.Rehearsal())


def test_a_wrong_kernel_of_ours_is_named_not_timed(monkeypatch):
    group = plan.Group("S1", "fp32", "k3", "forward")
    right = ops.ours(group, devices.Rehearsal())
    wrong = [ops.measure.Entry(e.name, e.layout, lambda x, w: x * 0, ours=True) for e in right]
    monkeypatch.setattr(ops, "ours", lambda group, device: wrong)
    record = ops.measure_group(group, devices.Rehearsal())
    assert record["refused"]["lightkernels nchw"].startswith("WrongResult")
    assert "eager nchw" in record["times"]
    row, *_ = report.rows([record])
    assert row["seconds"] is None
    assert row["short"][0].startswith("WrongResult")
    assert "WrongResult" in report.markdown([record])


def timed(**seconds):
    return {
        n.replace("_", " "): {"median": s, "min": s, "spread": 0.0, "graph": True, "samples": 9}
        for n, s in seconds.items()
    }


def result(part="ops", key=("S4", "bf16", "concat", "forward"), **seconds):
    group = plan.Group(*key)
    fields = dict(zip(("shape", "dtype", "variant", "kind"), key, strict=True))
    common = {"part": part, "key": group.key, **fields, "bytes": group.bytes(), "flops": group.flops()}
    return {**common, "times": timed(**seconds), "errors": {}, "refused": {}, "peaks": {}}


def test_shortfalls_are_said():
    copy = {"part": "ceilings", "key": "copy", "unit": "B/s", "value": 4e12}
    least = plan.Group("S4", "bf16", "concat", "forward").bytes() / 4e12
    reached = result(lightkernels_nchw=least / 0.9, lightkernels_nhwc=least / 0.4, eager_nchw=least * 8)
    nchw, nhwc = report.rows([copy, reached])
    assert nchw["short"] == []
    assert nchw["fraction"] == pytest.approx(0.9)
    assert nhwc["short"] == ["0.40 of the copy ceiling, ship 0.50", "3.20x the best, goal 3.5x"]
    assert "S4 bf16 concat forward nhwc: 0.40 of the copy" in report.markdown([copy, reached])
    assert report.csv_text([reached]).count("\n") == 4


def test_native_kernels_have_rows_and_predictions_of_their_own():
    record = result(lightkernels_nchw=3e-3, lightkernels_cuda_nchw=2e-3, eager_nchw=4e-3)
    found = {r["name"]: r for r in report.rows([record])}
    assert set(found) == {"nchw", "nhwc", "cuda nchw"}
    assert found["cuda nchw"]["ratio"] == 2 and found["nchw"]["predicted"] is None
    written = (FOLDER / "results" / "gpu_predicted.csv").read_text()
    assert written == predicted.table() + "\n"
    assert "S4,bf16,concat,forward,nchw," in written
    for line in written.splitlines()[1:]:
        *_, seconds, traffic = line.split(",")
        assert float(seconds) > float(traffic)


def test_small_tensors_are_allowed_a_fixed_time():
    small = ("S2", "bf16", "add", "forward")
    assert plan.Group(*small).bytes() <= plan.SMALL_BYTES
    time = plan.Group(*small).bytes() / 4e12 / 0.6 + 2.4e-6
    copy = {"part": "ceilings", "key": "copy", "unit": "B/s", "value": 4e12}
    row, _ = report.rows([copy, result(key=small, lightkernels_nchw=time, eager_nchw=time * 9)])
    assert row["short"] == [f"{row['fraction']:.2f} of the copy ceiling, goal 0.80"]


def test_times_through_torch_compile_are_scaled_by_ours():
    base = result(lightkernels_nchw=1.0, lightkernels_nhwc=2.0, eager_nchw=5.0)
    other = result(part="compile", lightkernels_nchw=2.0, lightkernels_nhwc=4.0, compiled_eager_nchw=6.0)
    (found,) = report.merged([base, other])
    assert found["times"]["compiled eager nchw"]["median"] == 3.0
    assert {r["best"] for r in report.rows([base, other])} == {"compiled eager nchw"}


def test_without_results_the_tables_say_so():
    text = report.markdown([])
    assert "No GPU results have been measured yet." in text
    assert text.count("Not measured.") >= 4


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 0.05


def test_the_cuda_device_s_own_code(monkeypatch):
    """Everything of Cuda but CUDA: captures, rounds of buffers, replays, peaks."""
    replays = []
    fakes = {
        "get_device_properties": lambda i: SimpleNamespace(name="fake", L2_cache_size=50_000),
        "current_device": lambda: 0,
        "Stream": lambda: "stream",
        "stream": lambda s: contextlib.nullcontext(),
        "Event": FakeEvent,
        "synchronize": lambda: None,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: replays.append(1)),
        "graph": lambda g, stream: contextlib.nullcontext(),
        "empty_cache": lambda: None,
        "memory_allocated": lambda: 10,
        "max_memory_allocated": lambda: 30,
        "reset_peak_memory_stats": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(devices.Cuda, "kind", "cpu")
    monkeypatch.setattr(ops, "ours", lambda g, d: ops.baselines.ours(g.combine, "reference", g.sizes[4]))
    monkeypatch.setitem(plan.SHAPES, "S1", (2, 3, 8, 8, 1))
    device = devices.Cuda()
    made = []
    replay = device.capture(lambda: (made.append(1), lambda: 1)[1], 20_000)
    assert len(made) == 10  # 4 x 50 kB of cache in 20 kB each
    assert replay.calls == 10
    assert replay.run() == pytest.approx(5e-6)
    assert len(replays) == 2
    assert device.peak_bytes(lambda: None) == 20
    for kind in plan.KINDS:
        record = ops.measure_group(plan.Group("S1", "bf16", "concat", kind), device)
        assert not record["refused"]
        assert record["peaks"]["lightkernels nchw"] == 20
        assert all(t["samples"] == 100 for t in record["times"].values())


def test_rounds_end_when_the_time_is_spent():
    replays = {"slow": devices.Replay(lambda: 0.05, 2), "fast": devices.Replay(lambda: 1e-6, 2)}
    devices.take_turns(replays, rounds=4, each=5, limit=0.1)
    assert len(replays["slow"].samples) == 3
    assert len(replays["fast"].samples) == 20
    assert replays["fast"].summary()["median"] == 1e-6


def test_ceilings_rehearsed():
    found = list(ceilings.records(devices.Rehearsal()))
    assert [r["key"] for r in found] == list(ceilings.CEILINGS)
    assert all("value" in r for r in found)


def test_kernels_of_the_ceilings_compile_for_the_device():
    triton = pytest.importorskip("triton")
    from gpu import ceilings_triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", 90, 32)
    fp, i32 = "*fp32", "i32"
    cases = {
        "read_cached": ({"x": fp, "out": fp, "blocks": i32, "repeats": i32}, {"BLOCK": 2048}, "ld.global.cg"),
        "multiply_add": ({"out": fp, "repeats": i32}, {"BLOCK": 512}, "fma.rn.f32"),
    }
    for name, (types, constants, needed) in cases.items():
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        source = triton.compiler.ASTSource(getattr(ceilings_triton, name), signature, constants)
        text = triton.compile(source, target=target).asm["ptx"]
        assert text.count(needed) >= (16 if name == "multiply_add" else 1), name


@pytest.fixture
def on_the_cpu(monkeypatch):
    """test_gpu's own functions, run by the reference."""
    monkeypatch.setattr(test_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(test_gpu, "BACKEND", "reference")


@pytest.mark.parametrize("name", list(test_gpu.CASES))
def test_parity_rehearsed(on_the_cpu, name):
    for dtype, layout in (("fp64", "nchw"), ("fp32", "nhwc"), ("bf16", "nchw"), ("fp16", "nhwc")):
        test_gpu.test_parity_with_float64_truth(name, dtype, layout)


def test_the_other_gpu_tests_rehearsed(on_the_cpu):
    for layout in test_gpu.LAYOUTS:
        test_gpu.test_poisoned_memory_does_not_show("fp32", layout)
        test_gpu.test_weight_gradients_are_equal_from_run_to_run("fp32", layout)
    test_gpu.test_autocast()


def test_the_gpu_tests_of_blocks_rehearsed(monkeypatch):
    monkeypatch.setattr(test_gpu_mldn, "DEVICE", "cpu")
    monkeypatch.setattr(test_gpu_mldn, "BACKEND", "reference")
    shape = (2, 16, 4, 5)
    small = {"block": test_gpu_mldn.blocks.case("block", shape, 2, 2, 8, dropout=0.2)}
    small["block-running"] = test_gpu_mldn.blocks.case("block-running", shape, 2, 2, 8, running=True)
    small["condensed"] = test_gpu_mldn.condensed.case("condensed", shape, 8, 4, 3)
    monkeypatch.setattr(test_gpu_mldn, "CASES", small)
    for name in ("block", "condensed"):
        test_gpu_mldn.test_parity_with_float64_truth(name, "bf16", "nhwc")
        test_gpu_mldn.test_poisoned_memory_does_not_show_and_results_repeat(name)
    test_gpu_mldn.test_nan_stays_nan()


def test_rsdc2d_s_gpu_tests_rehearsed(monkeypatch):
    monkeypatch.setattr(test_gpu_rsdc2d, "DEVICE", "cpu")
    monkeypatch.setattr(test_gpu_rsdc2d, "BACKEND", "reference")
    shrunk = {name: ((2, *c[0][1:2], 6, 5), *c[1:]) for name, c in test_gpu_rsdc2d.CASES.items()}
    monkeypatch.setattr(test_gpu_rsdc2d, "CASES", shrunk)
    for name in shrunk:
        test_gpu_rsdc2d.test_parity_with_float64_truth(name, "fp32", "nhwc")
    test_gpu_rsdc2d.test_float32_by_tf32_is_as_good_as_cudnn_s("nchw", monkeypatch)
    test_gpu_rsdc2d.test_poisoned_memory_does_not_show_and_gradients_repeat("mldn", "nchw")
