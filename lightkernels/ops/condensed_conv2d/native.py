"""The native CPU kernels: addresses and sizes go to lightkernels._C. The gradient of x, and with it those of scale and
shift, is that of PyTorch's operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightkernels._core import native
from lightkernels.ops.condensed_conv2d import reference
from lightkernels.ops.condensed_conv2d.spec import ACTIVATIONS, Inputs, Outputs, Spec

PLAN = "CondensedConv2dPlan"
_threads = torch.get_num_threads
_empty = torch.empty_strided


def why_not(spec: Spec) -> str | None:
    return native.why_not(spec, PLAN)


def config_text(spec: Spec) -> str:
    return "forward and weight gradient in one pass each; the gradient of x by PyTorch's operators"


def readable(spec: Spec, stride: tuple[int, ...]) -> bool:
    """Whether the kernel can read such a tensor in place: maps (nchw) or rows of pixels (nhwc) without gaps."""
    _, sc, sh, sw = stride
    if min(stride) < 0:
        return False
    if spec.layout == "nchw":
        return (sw == 1 or spec.w == 1) and (sh == spec.w or spec.h == 1)
    return (sc == 1 or spec.c == 1) and (sh == spec.w * sw or spec.h == 1)


def copies(spec: Spec) -> str | None:
    """What is copied before the kernel runs, for ``explain``."""
    if not readable(spec, spec.x_stride):
        return f"x is copied: its strides {spec.x_stride} leave gaps within a map"
    return None


def plan_head(spec: Spec, stride: tuple[int, ...], nhwc: bool | None = None) -> list[int]:
    """What a plan of a native module is made of, for an x of such strides; by default in the call's layout."""
    nhwc = spec.layout == "nhwc" if nhwc is None else nhwc
    sizes = [spec.n, spec.c, spec.h * spec.w, spec.c_out, spec.groups, spec.picked, stride[0]]
    # From one pixel to the next, and from one channel to the next.
    pixel = (stride[3] if spec.w > 1 else stride[2]) if nhwc else 1
    sizes += [pixel, 1 if nhwc else stride[1]]
    return [*sizes, int(nhwc), native.DTYPES[spec.dtype], ACTIVATIONS.index(spec.activation)]


def _plan(spec: Spec, stride: tuple[int, ...], nhwc: bool) -> Any:
    plan = spec.cache.get((stride, nhwc))
    if plan is None:
        plan = spec.cache[stride, nhwc] = native.plan_class(PLAN)(plan_head(spec, stride, nhwc))
    return plan


def infer(spec: Spec, t: Inputs) -> Tensor:
    x, weight, scale, shift, index = (one if i == 0 else one.contiguous() for i, one in enumerate(t))
    if not readable(spec, x.stride()):
        x = x.new_empty_strided(spec.x_shape, spec.dense_x_stride).copy_(x)
    y = _empty(spec.y_shape, spec.y_stride, dtype=spec.dtype, device="cpu")
    if not spec.empty:
        _plan(spec, x.stride(), spec.layout == "nhwc").fwd(
            x.data_ptr(),
            weight.data_ptr(),
            scale.data_ptr(),
            shift.data_ptr(),
            index.data_ptr(),
            y.data_ptr(),
            _threads(),
        )
    return y


def fwd(spec: Spec, t: Inputs) -> Outputs:
    return Outputs(infer(spec, t))


def _weight_gradient(spec: Spec, g: Tensor, t: Inputs, a: Tensor, gy: Tensor) -> Tensor:
    # Of NCHW maps: the others are copied.
    x = t.x if spec.layout == "nchw" and readable(spec, t.x.stride()) else t.x.contiguous()
    scale, shift, index, g = t.scale.contiguous(), t.shift.contiguous(), t.index.contiguous(), g.contiguous()
    gw = _empty(tuple(t.weight.shape), (spec.picked, 1), dtype=spec.dtype, device="cpu")
    if spec.empty:
        return gw.zero_()
    _plan(spec, x.stride(), False).bwd_w(
        g.data_ptr(),
        x.data_ptr(),
        scale.data_ptr(),
        shift.data_ptr(),
        index.data_ptr(),
        gw.data_ptr(),
        _threads(),
    )
    return gw


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor, ...]:
    return reference.bwd(spec, g, t, out, _weight_gradient)
