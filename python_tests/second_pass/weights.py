"""Tensors of a network, handed out in definition order with the shape the reader expects."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class Weights:
    """Reads parameters and batch-norm running buffers in definition order.

    Args:
        parameters: every parameter (frozen ones too) in data-flow order: a block's main path, then its shortcut;
            a convolution's weight before its bias, a batch norm's weight before its bias.
        buffers: running mean and running variance of every batch norm in the same order. Scalars (the batch counters
            that a module keeps between them) are passed over.
    """

    def __init__(self, parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self._buffers = [buffer for buffer in buffers if buffer.dim() > 0]
        self._next_parameter = 0
        self._next_buffer = 0

    def parameter(self, what: str, *shape: int) -> Tensor:
        at = self._next_parameter
        assert at < len(self._parameters), f"{what} {shape}: all {at} parameters are used up"
        value = self._parameters[at]
        assert tuple(value.shape) == shape, f"parameter {at}: {what} should be {shape}, is {tuple(value.shape)}"
        self._next_parameter += 1
        return value

    def buffer(self, what: str, *shape: int) -> Tensor:
        at = self._next_buffer
        assert at < len(self._buffers), f"{what} {shape}: all {at} buffers are used up"
        value = self._buffers[at]
        assert tuple(value.shape) == shape, f"buffer {at}: {what} should be {shape}, is {tuple(value.shape)}"
        self._next_buffer += 1
        return value

    def conv(self, out: int, in_per_group: int, k: int) -> Tensor:
        return self.parameter("convolution weight", out, in_per_group, k, k)

    def bias(self, n: int) -> Tensor:
        return self.parameter("bias", n)

    def bn(self, c: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gamma, beta, running mean, running variance."""
        gamma = self.parameter("batch-norm weight", c)
        beta = self.parameter("batch-norm bias", c)
        return gamma, beta, self.buffer("running mean", c), self.buffer("running variance", c)

    def prelu(self, c: int) -> Tensor:
        return self.parameter("PReLU slope", c)

    def linear(self, out: int, inputs: int) -> Tensor:
        return self.parameter("linear weight", out, inputs)

    def finish(self) -> None:
        """Assert that nothing is left over."""
        parameters = len(self._parameters) - self._next_parameter
        buffers = len(self._buffers) - self._next_buffer
        assert parameters == 0, f"{parameters} of {len(self._parameters)} parameters were never read"
        assert buffers == 0, f"{buffers} of {len(self._buffers)} buffers were never read"


class RecordedWeights(Weights):
    """Makes up whatever is asked for and keeps it in `parameters` and `buffers`, in the order of asking."""

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        super().__init__([], [])
        self.parameters: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
        self._dtype = dtype
        self._device = device

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=self._dtype, device=self._device)

    def parameter(self, what: str, *shape: int) -> Tensor:
        value = self._normal(*shape)
        if len(shape) > 1:
            value *= math.sqrt(2 / math.prod(shape[1:]))
        else:
            value = 0.1 * value + {"batch-norm weight": 1.0, "PReLU slope": 0.25}.get(what, 0.0)
        self.parameters.append(value)
        return value

    def buffer(self, what: str, *shape: int) -> Tensor:
        value = 0.1 * self._normal(*shape) + (1.0 if what == "running variance" else 0.0)
        self.buffers.append(value.abs() if what == "running variance" else value)
        return self.buffers[-1]

    @property
    def count(self) -> int:
        """Elements of all parameters; running statistics are not counted."""
        return sum(value.numel() for value in self.parameters)
