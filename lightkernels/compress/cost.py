"""What an operator costs: convolution weights, multiply-adds, and seconds on this machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from lightkernels._core import measure
from lightkernels._core.spec import pair, require
from lightkernels.compress.operators import build_operator, kind_of, why_not
from lightkernels.models import count

Size = tuple[int, int]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


@functools.cache
def _on_meta(name: str, in_channels: int, out_channels: int, stride: int, size: Size) -> tuple[int, int, int]:
    """Weights, multiply-adds and the norms' parameters of the module as it is built."""
    with torch.device("meta"):
        module = build_operator(name, in_channels, out_channels, stride)
    norms = sum(p.numel() for m in module.modules() if _is_norm(m) for p in m.parameters(recurse=False))
    found = count(module, (in_channels, *size))
    return found.params - norms, found.ops, norms


@functools.cache
def _seconds(
    name: str, shape: tuple[int, int, int], size: Size, batch: int, device: str, dtype: torch.dtype, threads: int
) -> float:
    module = build_operator(name, *shape, device=device, dtype=dtype).eval()
    x = torch.randn(batch, shape[0], *size, device=device, dtype=dtype)

    def run() -> None:
        module(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    with torch.no_grad():
        return measure.interleaved({"operator": run}, rounds=3, min_time=0.01)["operator"].min


@dataclass(frozen=True)
class Cost:
    """An operator in a layer of a given shape: exact integers, and a measurement on demand."""

    name: str
    in_channels: int
    out_channels: int
    stride: int
    size: Size
    params: int
    macs: int

    @property
    def norm_params(self) -> int:
        """Scales and shifts of its norms, which the paper does not count."""
        return _on_meta(self.name, self.in_channels, self.out_channels, self.stride, self.size)[2]

    def latency(self, batch: int = 1, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> float:
        """Seconds of one forward pass of `batch` images in evaluation on this machine, the least of many.

        Measured once for a process, device, type and number of threads.
        """
        shape = (self.in_channels, self.out_channels, self.stride)
        return _seconds(self.name, shape, self.size, batch, str(device), dtype, torch.get_num_threads())


def cost(name: str, in_channels: int, out_channels: int, stride: int = 1, size: int | Size = (32, 32)) -> Cost:
    """What the operator costs in a layer whose input is ``size``.

    ``params`` are the weights of its convolutions: norms are not counted, as in the paper. ``macs`` are multiply-adds
    of one image, padding included; of pools, their nine additions a value.

    Raises TypeError and ValueError for arguments that fit no operator.

    >>> from lightkernels.compress.cost import cost
    >>> found = cost("N_3x3_4", 16, 16, size=(32, 32))
    >>> found.params, found.macs
    (576, 589824)
    """
    kind = kind_of(name, "cost")
    height, width = pair("cost", "size", size)
    require(height >= 1 and width >= 1, "cost", "size", "be at least 1", (height, width))
    reason = why_not(name, in_channels, out_channels, stride)
    shape = f"{in_channels} to {out_channels} channels with stride {stride}"
    require(reason is None, "cost", "name", f"fit a layer of {shape}", name, hint=f"{reason}.")
    if kind.count is not None:
        params, macs = kind.count(in_channels, out_channels, stride, (height, width))
    else:
        params, macs, _ = _on_meta(name, in_channels, out_channels, stride, (height, width))
    return Cost(name, in_channels, out_channels, stride, (height, width), params, macs)
