"""The native CPU kernels: addresses and sizes go to lightkernels._C. They work on NCHW maps; NHWC is transposed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightkernels._core import native
from lightkernels._core.spec import dense_stride
from lightkernels.ops.mldn_block.spec import Inputs, Outputs

if TYPE_CHECKING:
    from lightkernels.ops.mldn_block.spec import Spec

_DTYPES = {torch.float32: 0, torch.float64: 1}


def why_not(spec: Spec) -> str | None:
    if spec.device != "cpu":
        return f"the tensors are on {spec.device}, not on the CPU"
    module, reason = native.load("_C", "MldnBlockPlan")
    if module is None:
        return reason
    if spec.dtype not in _DTYPES:
        return f"dtype {spec.dtype} is not supported"
    if spec.version == 2:
        return "version 2 has no native kernel: its channels change from layer to layer"
    return None


def copies(spec: Spec) -> str | None:
    """What is copied before and after the kernel runs, for ``explain``."""
    if spec.layout == "nhwc":
        return "x, the output and their gradients are transposed: the kernels work on NCHW maps"
    return None


def _plan(spec: Spec) -> Any:
    plan = spec.cache.get("native")
    if plan is None:
        module, reason = native.load("_C", "MldnBlockPlan")
        if module is None:
            raise RuntimeError(reason)
        head = [spec.n, spec.c, spec.h, spec.w, spec.layers, spec.paths, spec.kappa, spec.mid, spec.groups]
        head += [spec.kernel_size, spec.taps, spec.sets, spec.index_groups, spec.condense_factor]
        head += [int(spec.batch_stats), int(spec.keep), _DTYPES[spec.dtype]]
        table = [to for layer in spec.table() for to in layer]
        threshold = spec.threshold if spec.dropout > 0 else 0
        plan = module.MldnBlockPlan(head, spec.eps, threshold, 1 / (1 - spec.dropout), table)
        spec.cache["native"] = plan
    return plan


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _dense(t: Inputs) -> Inputs:
    """All but x, as the kernels read them; the caller keeps them alive."""
    return Inputs(t.x, *(None if one is None else one.contiguous() for one in t[1:]))


def _inputs(t: Inputs) -> list[int]:
    rest = (t.weight1, t.weight3, t.bias3, t.affine1, t.affine2, t.running1, t.running2, t.taps, t.index)
    return [_address(one) for one in rest]


def _seed(t: Inputs) -> int:
    return 0 if t.seed is None else int(t.seed) & 0xFFFFFFFFFFFFFFFF


def _maps(spec: Spec, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=spec.dtype, device="cpu")


def _as_layout(t: Tensor, spec: Spec) -> Tensor:
    if spec.layout == "nchw":
        return t
    return t.new_empty_strided(t.shape, dense_stride(tuple(t.shape), spec.layout)).copy_(t)


def _one_layer(spec: Spec) -> tuple[int, ...]:
    return (spec.n * spec.paths * spec.mid * spec.h * spec.w,)


def _buffer(spec: Spec, t: Inputs) -> Tensor:
    y = _maps(spec, spec.y_shape)
    spec.prefix(y).copy_(spec.by_path(t.x))
    return y


def fwd(spec: Spec, t: Inputs) -> Outputs:
    if spec.index_groups > 0:
        return Outputs(infer(spec, t), *(torch.empty(shape, dtype=dtype) for shape, dtype in spec.kept()))
    t, y = _dense(t), _buffer(spec, t)
    stats = [torch.empty(shape, dtype=spec.acc_dtype) for shape in spec.stats_shapes]
    mid = _maps(spec, spec.mid_shape)
    if not spec.empty:
        inner = mid if spec.keep else _maps(spec, _one_layer(spec))
        out = [y.data_ptr(), inner.data_ptr(), stats[0].data_ptr(), stats[1].data_ptr()]
        _plan(spec).fwd(_inputs(t), _seed(t), out, torch.get_num_threads())
    return Outputs(_as_layout(y, spec), stats[0], stats[1], stats[2], mid)


def infer(spec: Spec, t: Inputs) -> Tensor:
    if spec.dropout > 0:
        return fwd(spec, t).y
    t, y = _dense(t), _buffer(spec, t)
    if not spec.empty:
        _plan(spec).infer(_inputs(t), y.data_ptr(), torch.get_num_threads())
    return _as_layout(y, spec)


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor | None, ...]:
    gx = _maps(spec, spec.x_shape)
    given = (t.weight1, t.weight3, t.affine1, t.affine2, t.bias3)
    grads = [None if one is None else torch.empty_like(one) for one in given]
    if spec.empty:
        return (_as_layout(gx, spec), *(None if one is None else one.zero_() for one in grads), None, None)
    g, y, t = g.contiguous(), out.y.contiguous(), _dense(t)
    read = spec.paths * spec.widths[-2]
    buffer = torch.empty((spec.n, read, spec.h, spec.w), dtype=spec.acc_dtype)
    inner = torch.empty(_one_layer(spec), dtype=spec.acc_dtype)
    mid = out.mid if spec.keep else _maps(spec, _one_layer(spec))
    w1, w3, a1, a2, b3 = (_address(one) for one in grads)
    addresses = [g.data_ptr(), buffer.data_ptr(), inner.data_ptr(), gx.data_ptr(), w1, w3, b3, a1, a2]
    outputs = [y.data_ptr(), mid.data_ptr(), out.stats1.data_ptr(), out.stats2.data_ptr()]
    _plan(spec).bwd(_inputs(t), _seed(t), outputs, addresses, torch.get_num_threads())
    return (_as_layout(gx, spec), *grads, None, None)
