"""Parameters and operations of a network, under the conventions of the papers."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightkernels._core.spec import fail_type, pair, require
from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.nn._arguments import int_tuple, one_of

Elementwise = Callable[[nn.Module, Tensor, Tensor], int]


@dataclass(frozen=True)
class Count:
    """What `count` found: plain integers."""

    params: int
    ops: int


def _nothing(module: nn.Module, x: Tensor, y: Tensor) -> int:
    return 0


def _norms_and_sums(module: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return y.numel()
    if isinstance(module, MultiDepthwiseConv2d) and module.combine == "add" and len(module.branches) > 1:
        return len(module.branches) * y.numel()
    return 0


def _activations_and_pools(module: nn.Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, nn.ReLU | nn.ReLU6 | nn.Hardswish):
        return y.numel()
    if isinstance(module, nn.Sigmoid):
        return 2 * y.numel()
    if isinstance(module, nn.AvgPool2d):
        high, wide = pair("count", "kernel_size", module.kernel_size)
        return y.numel() * high * wide
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return x.numel()
    if isinstance(module, nn.Linear) and module.bias is not None:
        return y.numel()
    return 0


@dataclass(frozen=True)
class _Convention:
    """What is added to the multiply-adds of each module that runs, and whether modules state their own counts."""

    extra: Elementwise
    asks: bool


_CONVENTIONS = {
    "macs": _Convention(_nothing, True),
    "condensenet": _Convention(_activations_and_pools, True),
    "converted": _Convention(_activations_and_pools, True),
    "train": _Convention(_nothing, False),
    "pydmobilenet": _Convention(_norms_and_sums, False),
}


def _meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers have shapes but no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _norm_shape(norm: Any, x: Tensor) -> Tensor:
    """A norm's output without values. PyTorch finds its shape by tracing the arithmetic, longer than all else takes."""
    if x.dim() < 2 or x.shape[1] != norm.num_features:
        raise ValueError("not as many channels as the norm has")
    return torch.empty_like(x)


def _shapes_only(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.forward = functools.partial(_norm_shape, module)  # type: ignore[method-assign]
    return model


class _Tally:
    """What runs, and what modules with a ``stated_count`` say of themselves in the place of what ran inside them."""

    def __init__(self, model: nn.Module, convention: str, counter: FlopCounterMode) -> None:
        self.convention, self.rule, self.counter = convention, _CONVENTIONS[convention], counter
        self.ops = 0
        self.params: dict[int, int] = {}  # by module: what it states less what it has
        self.open: list[tuple[int, int, dict[int, int]]] = []
        if self.rule.asks or self.rule.extra is not _nothing:
            self.watch(model)

    def watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.enter)
        module.register_forward_hook(self.leave)
        # A block that speaks for all its children runs as it does unwatched: as one operator.
        if not (self.rule.asks and getattr(module, "states_children", False)):
            for child in module.children():
                self.watch(child)

    def executed(self) -> int:
        return int(self.counter.get_total_flops()) // 2

    def enter(self, module: nn.Module, args: Any) -> None:
        if self.rule.asks and hasattr(module, "stated_count"):
            self.open.append((self.executed(), self.ops, dict(self.params)))

    def leave(self, module: nn.Module, args: Any, y: Any) -> None:
        x = args[0] if args else None
        if self.rule.asks and hasattr(module, "stated_count"):
            before, ops, params = self.open.pop()
            said = cast(Any, module).stated_count(self.convention, x, y)
            if said is not None:
                self.ops = ops + said[1] - (self.executed() - before)
                self.params = params | {id(module): said[0] - sum(p.numel() for p in module.parameters())}
                return
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            self.ops += self.rule.extra(module, x, y)


def _run(model: nn.Module, image: Tensor, convention: str) -> tuple[int, int]:
    """Operations of one image, and what stated parameters differ by."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tally = _Tally(model, convention, counter)
        model.eval()(image)
    return tally.executed() + tally.ops, sum(tally.params.values())


def count(model: nn.Module, input_size: tuple[int, int, int], convention: str = "macs") -> Count:
    """Parameters and operations of any module, for one image of size ``(C, H, W)``.

    ``params``: all elements of parameters, trainable or frozen; buffers (running statistics) are not counted.

    ``ops`` under ``convention``:

    * ``"macs"``: multiply-adds of the convolutions and matrix products that run, padding taps included, never doubled.
      An operator of ours counts its definition: 83 taps for the sum of 3x3, 5x5 and 7x7, though 49 are computed.
      Learned groups count what is left of them after condensation, whether it has taken place or not.
    * ``"train"``: the same, with learned groups as the masked dense convolutions that training runs.
    * ``"condensenet"``: what the CondenseNet and MLDN papers print: multiply-adds, learned groups as above; 1 for each
      element of a ReLU or h-swish, 2 of a sigmoid, 1 for each element that a mean or average pool reads; the bias of a
      linear layer (not in CondenseNetV2). ``params`` has learned groups as above too, and every norm whole.
    * ``"converted"``: the same after conversion: norms of the picked channels alone, and, in version 1, a classifier
      that reads half of its inputs. The official ImageNet tables print this.
    * ``"pydmobilenet"``: multiply-adds, plus 1 for each element of each BatchNorm output, plus M for each output
      element of a sum of M branches: the convention that gives the FLOPs of Hoang and Jo, Table 3 (with
      ``inner="in"``).

    Activations and pools are counted where they are modules; a module of your own may say what it counts for by a
    method ``stated_count(convention, x, y) -> (params, ops)`` of one image's input and output.

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
    found: tuple[int, int] | None = None
    # Whatever a network raises for want of values; what it raises for other reasons it raises again below.
    with contextlib.suppress(Exception):
        found = _run(_shapes_only(_meta_copy(model)), torch.empty(1, *size, dtype=dtype, device="meta"), convention)
    if found is None:
        device = parameters[0].device if parameters else torch.device("cpu")
        found = _run(copy.deepcopy(model), torch.zeros(1, *size, dtype=dtype, device=device), convention)
    return Count(params=sum(p.numel() for p in parameters) + found[1], ops=found[0])
