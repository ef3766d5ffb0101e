"""The measuring core refuses wrong candidates, takes turns, and counts page faults. No test here bounds a time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest
import torch

from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines


def problem(kernels=(3, 5), combine="concat", dtype=torch.float32, stride=1):
    torch.manual_seed(0)
    h, w = -(-6 // stride), -(-7 // stride)
    x = torch.randn(2, 3, 6, 7).to(dtype)
    weights = [torch.randn(3, 1, k, k).to(dtype) for k in kernels]
    channels = 3 * len(kernels) if combine == "concat" else 3
    return x, weights, torch.randn(2, channels, h, w).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("combine", ["concat", "add"])
def test_every_baseline_is_right_in_every_pass(combine, dtype):
    x, weights, g = problem(combine=combine, dtype=dtype)
    entries = measure.baselines("multi_dwconv2d", kernel_sizes=(3, 5), combine=combine, dtype=dtype, sixteen="both")
    count = 6 if combine == "concat" else 4
    assert len(entries) == (count if dtype in (torch.float32, torch.float64) else 2 * count)
    for kind in measure.PASSES:
        truth = baselines.truth(x, weights, g, combine, kind)
        for entry in [*entries, *baselines.ours(combine, "reference")]:
            outputs = entry.results(kind, entry.call(kind, x, weights, g)())
            measure.check(entry.label, outputs, truth)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_truth_is_the_reference_in_float64(stride):
    x, weights, g = problem(stride=stride)
    entries = measure.baselines("multi_dwconv2d", kernel_sizes=(3, 5), dtype=torch.float64, stride=stride)
    wide = [w.double() for w in weights]
    for kind in measure.PASSES:
        truth = baselines.truth(x, weights, g, kind=kind, stride=stride)
        for entry in [*baselines.ours("concat", "reference", stride), *entries]:
            outputs = entry.results(kind, entry.call(kind, x.double(), wide, g.double())())
            torch.testing.assert_close(outputs, truth, rtol=1e-12, atol=1e-12)


def test_inputs_are_in_the_layout_of_the_entry():
    seen = []

    def forward(x, weights):
        seen.append((x, *weights))
        return x * 1.0

    x = torch.randn(2, 3, 4, 5)
    for layout, fmt in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        measure.Entry("probe", layout, forward).call("forward", x, [torch.randn(3, 1, 3, 3)], x)()
        assert seen[-1][0].is_contiguous(memory_format=fmt)
        assert seen[-1][0].data_ptr() != x.data_ptr()


def test_a_wrong_candidate_is_refused():
    x, weights, g = problem()
    truth = baselines.truth(x, weights, g, kind="forward")
    good = baselines.entries((3, 5))[0]

    def one_element_off(x, weights):
        y = good.forward(x, weights)
        y[-1, -1, -1, -1] += 1
        return y

    def broken(x, weights):
        raise RuntimeError("cannot run")

    wrong = [measure.Entry("wrong", "nchw", one_element_off), measure.Entry("broken", "nchw", broken)]
    result = measure.contest([good, *wrong], "forward", x, weights, g, truth, rounds=1, min_time=0)
    assert list(result.timings) == ["eager nchw"]
    assert "relative error" in result.refused["wrong nchw"]
    assert result.refused["broken nchw"] == "RuntimeError: cannot run"
    ours = measure.Entry("ours", "nchw", one_element_off, ours=True)
    with pytest.raises(measure.WrongResult, match="ours nchw, forward: relative error"):
        measure.contest([good, ours], "forward", x, weights, g, truth, rounds=1, min_time=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_result_never_passes(bad):
    with pytest.raises(measure.WrongResult):
        measure.check("bad", [torch.full((2,), bad)], [torch.ones(2)])
    with pytest.raises(measure.WrongResult):
        measure.check("shape", [torch.ones(3)], [torch.ones(2)])


def test_candidates_take_turns():
    seen = []
    names = "abc"
    candidates = {
        n: measure.Candidate(lambda: None, prepare=lambda n=n: seen.append(n)) if n != "c" else lambda: None
        for n in names
    }
    timings = measure.interleaved(candidates, rounds=2, min_time=0.001, give_up=1e9)
    assert seen == ["a", "b", "a", "b", "b", "a"]
    assert set(timings) == set(names)
    for timing in timings.values():
        assert 0 < timing.min <= timing.median
        assert timing.number > 1
        assert timing.spread >= 0


def test_a_hopeless_candidate_is_timed_once():
    calls = {"fast": lambda: None, "slow": lambda: time.sleep(0.02)}
    timings = measure.interleaved(calls, rounds=4, min_time=0.001)
    assert len(timings["slow"].samples) == 1
    assert len(timings["fast"].samples) >= 4


def test_a_call_seen_to_take_seconds_is_not_repeated():
    def slow():
        raise AssertionError("called again")

    calls = {"fast": lambda: None, "slow": measure.Candidate(slow, seen=2.0)}
    assert measure.interleaved(calls, rounds=2, min_time=0.001)["slow"].samples == (2.0,)


@pytest.mark.parametrize("slow", ["the first call", "every call"])
def test_what_a_first_call_costs_is_not_a_candidates_time(slow):
    x, weights, g = problem()
    truth = baselines.truth(x, weights, g, kind="forward")
    good = baselines.entries((3, 5))[0]
    calls = []

    def forward(x, weights):
        calls.append(None)
        if slow == "every call" or len(calls) == 1:
            time.sleep(0.55)
        return good.forward(x, weights)

    entries = [good, measure.Entry("late", "nchw", forward)]
    timing = measure.contest(entries, "forward", x, weights, g, truth, rounds=1, min_time=0).timings["late nchw"]
    if slow == "every call":
        assert len(calls) == 2 and len(timing.samples) == 1 and timing.min >= 0.55
    else:
        assert len(calls) > 2 and timing.min < 0.5


def test_best_and_ratio():
    timing = {n: measure.Timing((s, 2 * s), 1, 0) for n, s in (("a nchw", 4.0), ("b nhwc", 3.0), ("o nchw", 1.0))}
    result = measure.Result("forward", timing, {}, {}, ("o nchw",))
    assert result.best() == "b nhwc"
    assert result.best("nchw") == "a nchw"
    assert result.ratio("o nchw") == 3.0
    assert result.ratio("o nchw", "nchw") == 4.0
    with pytest.raises(ValueError, match="no baseline"):
        measure.Result("forward", {"o nchw": timing["o nchw"]}, {}, {}, ("o nchw",)).best()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_steady_memory_removes_page_faults():
    code = """
        import sys
        import torch
        from lightkernels._core import measure
        if sys.argv[1] == "steady" and not measure.steady_memory(huge=True):
            raise SystemExit("no glibc")
        torch.set_num_threads(1)
        timing = measure.interleaved({"fill": lambda: torch.ones(12_000_000)}, rounds=2, min_time=0.01)
        print(timing["fill"].faults)
    """
    faults = {}
    for mode in ("steady", "plain"):
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), mode], capture_output=True, text=True, check=False
        )
        if "no glibc" in run.stderr:
            pytest.skip("no glibc")
        assert run.returncode == 0, run.stderr
        faults[mode] = int(run.stdout)
    assert faults["steady"] == 0
    assert faults["plain"] > 1000
