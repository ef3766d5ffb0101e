"""Sizes and offsets over 2^31: in the Spec, on the meta device, and in the kernels' own index arithmetic."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import lightkernels
from lightkernels._core.spec import TensorMeta, dense_stride
from lightkernels.ops.multi_dwconv2d.op import Spec

CSRC = Path(__file__).parents[1] / "csrc"
SHAPE = (3, 1024, 1024, 1024)  # 3 * 2^30 elements
KERNELS = (3, 5, 7)
STRIDES = {
    "nchw": (1_073_741_824, 1_048_576, 1024, 1),
    "nhwc": (1_073_741_824, 1, 1_048_576, 1024),
}

PROGRAM = """
#include <cstdlib>
#include <iostream>

#include "multi_dwconv2d/params.h"

int main(int, char** argv) {
  lk::i64 v[8];
  for (int i = 0; i < 8; ++i) v[i] = std::atoll(argv[i + 1]);
  std::cout << lk::multi_dwconv2d::offset({v[0], v[1], v[2], v[3]}, v[4], v[5], v[6], v[7]);
}
"""


def meta(layout, batch_step=1):
    n, *rest = STRIDES[layout]
    return TensorMeta(SHAPE, (batch_step * n, *rest), torch.float32, torch.device("meta"))


def spec_of(x, combine="concat"):
    channels = [SHAPE[1]] * len(KERNELS)
    return Spec.of(x, None, None, KERNELS, channels, (1, 1), (1,) * len(KERNELS), combine, False)


@pytest.mark.parametrize("layout", STRIDES)
def test_spec(layout):
    spec = spec_of(meta(layout))
    assert spec.layout == layout and spec.x_stride == spec.dense_x_stride == STRIDES[layout]
    assert spec.y_shape == (3, 3072, 1024, 1024)
    assert spec.y_stride[0] == 3_221_225_472  # one image of the output alone is over 2^31
    assert spec.flops() == 534_723_428_352  # 2 * 3 * 2^20 * 1024 * 83
    assert spec.bytes() == 4 * (3_221_225_472 + 84_992 + 9_663_676_416)
    assert all(type(v) is int for v in (*spec.y_stride, *spec.x_stride, spec.flops(), spec.bytes()))


@pytest.mark.parametrize("layout", STRIDES)
def test_spec_of_every_second_image(layout):
    spec = spec_of(meta(layout, batch_step=2), "add")
    assert spec.layout == layout and spec.x_stride[0] == 2**31
    assert spec.dense_x_stride == spec.y_stride == STRIDES[layout]


@pytest.mark.parametrize("layout", STRIDES)
def test_meta_call(layout):
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    x = torch.empty(SHAPE, device="meta").contiguous(memory_format=memory_format).requires_grad_()
    weights = [torch.empty(SHAPE[1], 1, k, k, device="meta", requires_grad=True) for k in KERNELS]
    y = lightkernels.multi_dwconv2d(x, weights)
    assert y.device.type == "meta" and y.shape == (3, 3072, 1024, 1024)
    assert y.stride() == dense_stride(y.shape, layout)
    gx, *gw = torch.autograd.grad(y, [x, *weights], torch.empty_like(y))
    assert (gx.shape, gx.stride()) == (x.shape, x.stride())
    assert [g.shape for g in gw] == [w.shape for w in weights]


@pytest.fixture(scope="module")
def offset(tmp_path_factory):
    """``offset`` of csrc/multi_dwconv2d/params.h, as a function."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("offset")
    source, program = folder / "offset.cpp", folder / "offset"
    source.write_text(PROGRAM)
    subprocess.run([compiler, "-std=c++17", f"-I{CSRC}", str(source), "-o", str(program)], check=True)

    def call(strides, index):
        command = [str(program), *map(str, (*strides, *index))]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return call


@pytest.mark.parametrize("layout", STRIDES)
def test_offsets_of_the_kernels(layout, offset):
    assert offset(STRIDES[layout], [size - 1 for size in SHAPE]) == 3_221_225_471  # the last element
    assert offset(STRIDES[layout], (2, 0, 0, 0)) == 2**31
    # The middle terms alone pass 2^31, whatever the batch.
    wide = dense_stride((1, 3072, 1024, 1024), layout)
    assert offset(wide, (0, 3071, 1023, 1023)) == 3_221_225_471
    assert offset(wide, (0, 2048, 0, 0)) == (2**31 if layout == "nchw" else 2048)


@pytest.mark.parametrize("layout", STRIDES)
@pytest.mark.parametrize("step", [2**24, 2**31 - 1])
def test_a_stride_beyond_the_image_is_the_image(step, layout):
    """Passes that count a stride's phases must not: their product leaves an int, and rows of scratch the memory."""
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    x = torch.randn(1, 4, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    w, taps = torch.randn(4, 1, 9, requires_grad=True), torch.arange(9)[None]

    def passes(stride):
        a = lightkernels.multi_dwconv2d(x, [w.view(4, 1, 3, 3)], stride=stride, backend="cpu")
        b = lightkernels.rsdc2d(x, w, taps, kernel_size=3, stride=stride, groups=4, backend="cpu")
        return a, b, *torch.autograd.grad(a.sum() + b.square().sum(), (x, w))

    assert all(map(torch.equal, passes(step), passes((5, 6))))
