"""The native CUDA kernels without a GPU: the very kernels and launchers, run lane by lane on the CPU (cuda_host)."""

import cuda_host
import pytest
import torch

from checks import parity
from checks.target import Target

if cuda_host.compiler() is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

TARGET = Target("lightkernels.ops.multi_dwconv2d", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAMES = [c.name for c in TARGET.cases.CASES if not {"bench", "bulk"} & c.tags]


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return cuda_host.build(base.parent if "popen" in base.name else base)


@pytest.fixture
def module(library):
    with cuda_host.device(cuda_host.Module(library)) as module:
        yield module


def forms(name):
    """Every case: fp32 or fp64 and a 16-bit type in nchw, which have kernels of their own, and one type in nhwc."""
    i = NAMES.index(name)
    yield "nchw", (torch.float32, torch.float64)[i % 5 == 4]
    yield "nchw", (torch.bfloat16, torch.float16)[i % 2]
    yield "nhwc", (torch.float32, torch.bfloat16, torch.float16, torch.float64)[i % 4]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(module, name, seed):
    """Against float64 truth, by the rule of the whole suite."""
    for layout, dtype in forms(name):
        parity.outputs_and_gradients(TARGET, TARGET.case(name), dtype, layout, seed)
