"""Every pass of multi_dwconv2d on the bench cases, ours and the fair list: ``pytest benchmarks --benchmark-only``.

``--benchmark-group-by=group`` puts the candidates of one call side by side. Results are checked against float64 before
anything is timed; no time is ever a test.
"""

import pytest
import torch
from cpu.common import Settings, problems

from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines, cases

PASSES = {"concat": ("forward", "step"), "add": ("forward", "step"), "single_3": ("forward",), "single_7": ("grad_w",)}
KERNELS = {"concat": (3, 5, 7), "add": (3, 5, 7), "single_3": (3,), "single_7": (7,)}


def calls():
    for group, kinds in PASSES.items():
        combine = "add" if group == "add" else "concat"
        entries = [
            *baselines.ours(combine),
            *measure.baselines("multi_dwconv2d", kernel_sizes=KERNELS[group], combine=combine),
        ]
        for case in cases.CASES:
            shape = case.name.removeprefix(f"bench_{group}_")
            if shape != case.name:
                for kind in kinds:
                    for entry in entries:
                        yield pytest.param(group, shape, kind, entry, id=f"{group}-{shape}-{kind}-{entry.label}")


@pytest.mark.parametrize(("group", "shape", "kind", "entry"), list(calls()))
def test_bench(benchmark, group, shape, kind, entry):
    benchmark.group = f"{group} {kind} {shape}"
    (problem,) = problems(group, Settings(shapes=(shape,)))
    call = entry.call(kind, problem.x, problem.weights, problem.g)
    measure.check(entry.label, entry.results(kind, call()), problem.truth(kind))
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(call)
