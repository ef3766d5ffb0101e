"""The native CPU kernels: addresses and sizes go to lightkernels._C. They work on NCHW maps and turn NHWC round on
the way in and out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import native
from lightkernels._core.spec import dense_stride
from lightkernels.ops.mldn_block.spec import Inputs, Outputs

if TYPE_CHECKING:
    from lightkernels.ops.mldn_block.spec import Spec

PLAN = "MldnBlockPlan"
_HALF = (torch.bfloat16, torch.float16)


def why_not(spec: Spec) -> str | None:
    return native.why_not(spec, PLAN)


def copies(spec: Spec) -> str | None:
    """What is copied before and after the kernel runs, for ``explain``."""
    found = []
    if spec.layout == "nhwc":
        found.append("x, the output and their gradients are turned round in the kernels, which work on NCHW maps")
    if spec.dtype in _HALF:
        found.append("all tensors are converted: the kernels work in float32")
    return "; ".join(found) or None


def plan_arguments(spec: Spec, keep: bool) -> tuple[Any, ...]:
    """Of a plan, of the native kernels' on the CPU and on a GPU."""
    head = [spec.n, spec.c, spec.h, spec.w, spec.layers, spec.paths, spec.kappa, spec.mid, spec.groups]
    head += [spec.kernel_size, spec.taps, spec.sets, spec.index_groups, spec.condense_factor]
    head += [int(spec.batch_stats), int(keep), int(spec.layout == "nhwc"), spec.version]
    head += [native.DTYPES[spec.dtype]]
    table = [to for layer in spec.table() for to in layer]
    threshold = spec.threshold if spec.dropout > 0 else 0
    return head, spec.eps, threshold, 1 / (1 - spec.dropout), table


def _plan(spec: Spec, keep: bool) -> Any:
    plan = spec.cache.get(("native", keep, spec.dtype))
    if plan is None:
        plan = native.plan_class(PLAN)(*plan_arguments(spec, keep))
        spec.cache["native", keep, spec.dtype] = plan
    return plan


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _dense(t: Inputs) -> Inputs:
    """All but x, as the kernels read them; the caller keeps them alive."""
    return Inputs(t.x, *(None if one is None else one.contiguous() for one in t[1:]))


def _x(spec: Spec, x: Tensor) -> tuple[Tensor, int, int]:
    """x, from image to image, and from pixel to pixel (0: in planes). The caller keeps it alive."""
    image, channel, row, pixel = x.stride()
    if spec.layout == "nchw":
        if (channel, row, pixel) != (spec.h * spec.w, spec.w, 1):
            return x.contiguous(), spec.c * spec.h * spec.w, 0
        return x, image, 0
    if (channel, row) != (1, spec.w * pixel) or pixel < spec.c:
        return x.contiguous(memory_format=torch.channels_last), spec.c * spec.h * spec.w, spec.c
    return x, image, pixel


def call_inputs(t: Inputs, x: tuple[Tensor | None, int, int] = (None, 0, 0)) -> list[int]:
    norms = (t.affine1, t.affine2, t.affine3, t.running1, t.running2, t.running3)
    tables = (t.taps, t.index, t.index_sfr)
    rest = (t.weight1, t.weight3, t.bias3, t.weight_sfr, *norms, *tables)
    return [_address(x[0]), *x[1:], *(_address(one) for one in rest)]


def _seed(t: Inputs) -> int:
    return 0 if t.seed is None else int(t.seed) & 0xFFFFFFFFFFFFFFFF


def _maps(spec: Spec, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=spec.dtype, device="cpu")


def _pixels(spec: Spec, shape: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(shape, dense_stride(shape, spec.layout), dtype=spec.dtype, device="cpu")


def _one_layer(spec: Spec) -> tuple[int, ...]:
    return (spec.n * spec.paths * spec.mid * spec.h * spec.w,)


def _wide(spec: Spec, t: Inputs) -> tuple[Spec, Inputs]:
    """A call in 16 bit as one in float32."""
    key = ("wide", spec.keep)
    if key not in spec.cache:
        spec.cache[key] = replace(spec, dtype=torch.float32)
    return spec.cache[key], Inputs(*(one.float() if one is not None and one.dtype in _HALF else one for one in t))


def fwd(spec: Spec, t: Inputs) -> Outputs:
    if spec.dtype in _HALF:
        out = fwd(*_wide(spec, t))
        return out._replace(y=out.y.to(spec.dtype), mid=out.mid.to(spec.dtype))
    if spec.index_groups > 0:
        return Outputs(infer(spec, t), *(torch.empty(shape, dtype=dtype) for shape, dtype in spec.kept()))
    t, y = _dense(t), _pixels(spec, spec.y_shape)
    stats = [torch.empty(shape, dtype=spec.acc_dtype) for shape in spec.stats_shapes]
    mid = _maps(spec, spec.mid_shape)
    if not spec.empty:
        inner = mid if spec.keep else _maps(spec, _one_layer(spec))
        planes = y if spec.layout == "nchw" else _maps(spec, spec.y_shape)
        outputs = [_address(one) for one in (planes, inner, y, *stats)]
        x = _x(spec, t.x)
        _plan(spec, spec.keep).fwd(call_inputs(t, x), _seed(t), outputs, torch.get_num_threads())
    return Outputs(y, stats[0], stats[1], stats[2], mid)


def infer(spec: Spec, t: Inputs) -> Tensor:
    if spec.dtype in _HALF:
        return infer(*_wide(spec, t)).to(spec.dtype)
    if spec.dropout > 0:
        return fwd(spec, t).y
    t, y = _dense(t), _pixels(spec, spec.y_shape)
    if not spec.empty:
        x = _x(spec, t.x)
        _plan(spec, False).infer(call_inputs(t, x), y.data_ptr(), torch.get_num_threads())
    return y


def _gradient(spec: Spec, g: Tensor) -> tuple[Tensor, bool]:
    """g, dense, and whether it is NHWC; either will do. The caller keeps it alive."""
    if g.is_contiguous() or not g.is_contiguous(memory_format=torch.channels_last):
        return g.contiguous(), False
    return g, True


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    if spec.dtype in _HALF:
        wide, t = _wide(spec, t)
        if spec.version == 2:  # what was rounded cannot be taken back
            wide = replace(wide, keep=False)
        known = out._replace(y=out.y.float(), mid=out.mid.float() if wide.keep else out.mid)
        grads = bwd(wide, g.float(), t, known)
        norms = (3, 4, 7)
        return tuple(v if v is None or i in norms else v.to(spec.dtype) for i, v in enumerate(grads))
    gx = _pixels(spec, spec.x_shape)
    names = ("weight1", "weight3", "affine1", "affine2", "bias3", "weight_sfr", "affine3")
    given = [getattr(t, name) for name in names]
    found = {n: None if one is None else torch.empty_like(one) for n, one in zip(names, given, strict=True)}
    if spec.empty:
        return (gx, *(None if one is None else one.zero_() for one in found.values()))
    keep = spec.keep or spec.version == 2
    if keep and not spec.keep:
        out = fwd(replace(spec, keep=True), t)
    (g, last), t, nhwc = _gradient(spec, g), _dense(t), spec.layout == "nhwc"
    pixels = out.y.contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    inner = torch.empty(_one_layer(spec), dtype=spec.acc_dtype)
    state = lost = third = None
    planes: Tensor | None = pixels
    if spec.version == 1:
        channels = spec.widths[-1 if last else -2]
        buffer = torch.empty((spec.n, spec.paths * channels, spec.h, spec.w), dtype=spec.acc_dtype)
        mid = out.mid if keep else _maps(spec, _one_layer(spec))
        planes = _maps(spec, spec.y_shape) if nhwc else pixels
    else:
        # What each layer read is found from the output by taking back what later layers added, with values that have
        # to be those that were added: they are kept, or the forward runs again.
        buffer, state, mid = torch.empty(spec.y_shape, dtype=spec.acc_dtype), _maps(spec, spec.y_shape), out.mid
        lost = mid[mid.numel() - spec.n * spec.paths * spec.widths[-2] * spec.h * spec.w :].clone()
        third = torch.empty((spec.n, spec.growth, spec.h, spec.w), dtype=spec.acc_dtype)
    order = ("weight1", "weight3", "bias3", "weight_sfr", "affine1", "affine2", "affine3")
    scratch = [_address(one) for one in (buffer, inner, third, state, lost, gx, *(found[name] for name in order))]
    outputs = [_address(one) for one in (planes, mid, pixels, out.stats1, out.stats2, out.stats3)]
    gradients = [_address(g), int(last), *scratch]
    _plan(spec, keep).bwd(call_inputs(t), _seed(t), outputs, gradients, torch.get_num_threads())
    return (gx, *found.values())
