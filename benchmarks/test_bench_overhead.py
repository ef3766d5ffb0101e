"""What a call costs on 1x4x8x8, where there is next to nothing to compute."""

import pytest
from cpu.small import overhead_calls

KINDS = ("no_grad", "grad", "step")
NAMES = [f"{who} {layout}" for layout in ("nchw", "nhwc") for who in ("lightkernels", "F.conv2d")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_overhead(benchmark, kind, name):
    benchmark.group = f"overhead {kind}"
    benchmark(overhead_calls(kind)[name])
