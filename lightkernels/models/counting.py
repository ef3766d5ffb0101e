"""Parameters and operations of a network, under the conventions of the papers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightkernels._core.spec import fail_type, require
from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.nn._arguments import int_tuple, one_of

Elementwise = Callable[[nn.Module, Tensor], int]


@dataclass(frozen=True)
class Count:
    """What `count` found: plain integers."""

    params: int
    ops: int


def _nothing(module: nn.Module, output: Tensor) -> int:
    return 0


def _norms_and_sums(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return output.numel()
    if isinstance(module, MultiDepthwiseConv2d) and module.combine == "add" and len(module.branches) > 1:
        return len(module.branches) * output.numel()
    return 0


# What a convention adds to the multiply-adds, for each module that runs.
_CONVENTIONS: dict[str, Elementwise] = {"macs": _nothing, "pydmobilenet": _norms_and_sums}


def _meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers have shapes but no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _run(model: nn.Module, image: Tensor, elementwise: Elementwise) -> int:
    extra = 0

    def add(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal extra
        if isinstance(output, Tensor):
            extra += elementwise(module, output)

    for module in model.modules():
        module.register_forward_hook(add)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return int(counter.get_total_flops()) // 2 + extra


def count(model: nn.Module, input_size: tuple[int, int, int], convention: str = "macs") -> Count:
    """Parameters and operations of any module, for one image of size ``(C, H, W)``.

    ``params``: all elements of parameters, trainable or frozen; buffers (running statistics) are not counted.

    ``ops`` under ``convention``:

    * ``"macs"``: multiply-adds of the convolutions and matrix products that run, padding taps included, never doubled.
      An operator of ours counts its definition: 83 taps for the sum of 3x3, 5x5 and 7x7, though 49 are computed.
    * ``"pydmobilenet"``: that, plus 1 for each element of each BatchNorm output, plus M for each output element of a
      sum of M branches: the convention that gives the FLOPs of Hoang and Jo, Table 3 (with ``inner="in"``).

    The forward pass runs in evaluation mode on a copy without memory (device "meta"); where a network reads values of
    its tensors, which such a copy lacks, it runs on a real copy. The model itself is not touched.

    Raises TypeError and ValueError for arguments that fit no count; an unknown convention names those available.

    Equivalent to: half of what ``torch.utils.flop_counter.FlopCounterMode`` counts for one image.

    >>> import torch
    >>> from lightkernels.models import count
    >>> count(torch.nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32))
    Count(params=224, ops=221184)
    """
    if not isinstance(model, nn.Module):
        fail_type("count", "model", "be a torch.nn.Module", model)
    one_of("count", "convention", convention, _CONVENTIONS)
    size = int_tuple("count", "input_size", input_size, "a tuple (C, H, W)")
    require(len(size) == 3, "count", "input_size", "be a tuple (C, H, W)", input_size)

    parameters = list(model.parameters())
    dtype = next((p.dtype for p in parameters if p.dtype.is_floating_point), torch.get_default_dtype())
    elementwise = _CONVENTIONS[convention]
    ops: int | None = None
    # Whatever a network raises for want of values; what it raises for other reasons it raises again below.
    with contextlib.suppress(Exception):
        ops = _run(_meta_copy(model), torch.empty(1, *size, dtype=dtype, device="meta"), elementwise)
    if ops is None:
        device = parameters[0].device if parameters else torch.device("cpu")
        ops = _run(copy.deepcopy(model), torch.zeros(1, *size, dtype=dtype, device=device), elementwise)
    return Count(params=sum(p.numel() for p in parameters), ops=ops)
