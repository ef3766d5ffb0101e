"""rsdc2d's native CUDA kernels without a GPU: the very kernels and launchers, lane by lane on the CPU."""

import cuda_host
import pytest
import torch

from checks import parity
from checks.target import Target

if cuda_host.compiler() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

TARGET = Target("lightkernels.ops.rsdc2d", "cuda")
NAMES = [c.name for c in TARGET.cases.CASES if not {"bench", "bulk"} & c.tags]


@pytest.fixture
def module(tmp_path_factory):
    with cuda_host.device(cuda_host.Module(cuda_host.library(tmp_path_factory))) as module:
        yield module


def forms(name):
    """Every case in both layouts, with the dtypes in turn."""
    i, dtypes = NAMES.index(name), (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    yield "nchw", dtypes[i % 4]
    yield "nhwc", dtypes[(i + 1) % 4]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(module, name, seed):
    """Against float64 truth, by the rule of the whole suite."""
    for layout, dtype in forms(name):
        parity.outputs_and_gradients(TARGET, TARGET.case(name), dtype, layout, seed)
