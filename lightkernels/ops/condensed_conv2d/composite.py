"""PyTorch's best: the picked channels copied once, then scaled and activated in place, and one grouped convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightkernels.ops.condensed_conv2d.reference import bwd as _bwd
from lightkernels.ops.condensed_conv2d.reference import by_group, dense, shuffled
from lightkernels.ops.condensed_conv2d.spec import Inputs, Outputs, Spec


def why_not(spec: Spec) -> str | None:
    return None


def fwd(spec: Spec, t: Inputs) -> Outputs:
    form = torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format
    a = t.x.index_select(1, t.index.flatten()).to(spec.acc_dtype, memory_format=form)
    a.mul_(t.scale[:, None, None]).add_(t.shift[:, None, None])
    a = F.relu_(a) if spec.activation == "relu" else F.hardswish(a, inplace=True)
    y = F.conv2d(a, by_group(t.weight.to(spec.acc_dtype), spec.groups), groups=spec.groups)
    return Outputs(dense(spec, shuffled(y, spec.groups), spec.y_stride))


def bwd(spec: Spec, g: Tensor, t: Inputs, out: Outputs) -> tuple[Tensor, ...]:
    return _bwd(spec, g, t, out)
