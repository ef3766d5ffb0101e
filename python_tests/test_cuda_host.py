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


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(module, name, seed):
    """Every case in every layout and one dtype of four, each against float64 truth by the suite's own rule."""
    for i, layout in enumerate(("nchw", "nhwc")):
        dtype = DTYPES[(NAMES.index(name) + 2 * i + seed) % 4]
        parity.outputs_and_gradients(TARGET, TARGET.case(name), dtype, layout, seed)
