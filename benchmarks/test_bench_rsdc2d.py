"""Forward and training step of rsdc2d on its bench cases, ours, the fair list and what it is named after.

As test_bench_multi_dwconv2d.py; a 3x3 convolution, or nine regular depthwise taps, compute something else and are the
price to compare with, so their results are not checked.
"""

import pytest
import torch
from cpu import rsdc
from cpu.common import Settings

from lightkernels._core import measure

GROUPS = ("layer_5", "layer_7", "filter_5", "mldn", "depthwise")


def calls():
    for group in GROUPS:
        for problem in rsdc.problems(group)(Settings()):
            for entry in [*problem.ours(), *problem.others(False), *problem.also()]:
                for kind in ("forward", "step"):
                    name = f"{group}-{problem.shape}-{kind}-{entry.label}"
                    yield pytest.param(group, problem.shape, kind, entry.label, id=name)


@pytest.mark.parametrize(("group", "shape", "kind", "label"), list(calls()))
def test_bench(benchmark, group, shape, kind, label):
    benchmark.group = f"{group} {kind} {shape}"
    (problem,) = rsdc.problems(group)(Settings(shapes=(shape,)))
    same = {entry.label: entry for entry in [*problem.ours(), *problem.others(False)]}
    entry = same.get(label) or next(entry for entry in problem.also() if entry.label == label)
    call = entry.call(kind, problem.x, problem.weights, problem.g)
    if label in same:
        measure.check(label, entry.results(kind, call()), problem.truth(kind))
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(call)
