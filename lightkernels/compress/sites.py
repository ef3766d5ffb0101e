"""Which layers can give way to a selection operator, and what each would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from lightkernels.compress import operators as ops
from lightkernels.compress.cost import cost
from lightkernels.compress.trace import CONVOLUTIONS, Call, Trace
from lightkernels.nn.convert import has_hooks, why_not_plain


@dataclass(frozen=True)
class Option:
    """One operator at one place: convolution weights, all parameters (with BN), multiply-adds for an image."""

    name: str
    weights: int
    params: int
    macs: int


@dataclass(frozen=True)
class Site:
    """A layer that is replaced. ``norm`` is the BatchNorm after it that goes with it, as every operator has its own."""

    name: str
    kind: str
    in_channels: int
    out_channels: int
    stride: int
    size: tuple[int, int]
    norm: str | None
    before: Option
    options: tuple[Option, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(option.name for option in self.options)


@dataclass(frozen=True)
class Choice:
    """What the user asked for: which layers, which operators, in which order."""

    names: tuple[str, ...] = ("*",)
    sizes: tuple[int, ...] = (3,)
    pools: bool = False
    keep_first: bool = True
    order: str = "cost"


class Finder:
    """Answers for each layer with a site or with the reason why it stays."""

    def __init__(self, model: nn.Module, trace: Trace, operators: Sequence[str], choice: Choice) -> None:
        self.modules, self.trace, self.operators, self.choice = dict(model.named_modules()), trace, operators, choice
        self.owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
        convs = [call.name for call in trace.calls if isinstance(self.modules[call.name], CONVOLUTIONS)]
        self.first = convs[0] if convs else None
        self.memo: dict[tuple[str, int, int, int, tuple[int, int]], Option] = {}

    def look(self, name: str) -> Site | str | None:
        """None for what is neither a convolution nor a pool that was asked for."""
        layer = self.modules[name]
        pool = isinstance(layer, nn.MaxPool2d) and self.choice.pools
        if not pool and not isinstance(layer, nn.modules.conv._ConvNd):
            return None
        if not any(fnmatchcase(name, pattern) for pattern in self.choice.names):
            return "its name was not asked for"
        calls = self.trace.of(name)
        if not calls:
            return "it did not run with these example inputs" if type(layer) is nn.Conv2d else _foreign(layer)
        if len(calls) > 1:
            return f"it runs {len(calls)} times in one pass"
        if calls[0].by_name:
            return "its input is a keyword argument, which the operators do not have"
        if isinstance(layer, nn.MaxPool2d):
            return self.pool(name, layer, calls[0])
        if not isinstance(layer, nn.Conv2d):
            return _foreign(layer)
        return self.conv(name, layer, calls[0])

    def conv(self, name: str, conv: nn.Conv2d, call: Call) -> Site | str:
        reason = why_not_plain(conv, self.choice.sizes, depthwise=False)
        if reason is not None:
            return reason.replace(" (depthwise=True converts it)", ": it is light already")
        if name == self.first and self.choice.keep_first:
            return "it is the first convolution (keep_first=False replaces it)"
        if conv.groups != 1:
            return f"it has {conv.groups} groups: it is light already"
        if conv.dilation != (1, 1):
            return f"its dilation is {conv.dilation[0]}: the operators would lose its receptive field"
        if conv.padding_mode != "zeros":
            return f"its padding mode is {conv.padding_mode!r}, the operators pad with zeros"
        if any(self.owners[id(p)] > 1 for p in conv.parameters()):
            return "it shares a parameter with another layer"
        if name in self.trace.touched:
            return "its parameters are read from outside of it"
        stride, reason = _stride(conv.stride, call)
        if reason is not None:
            return reason
        norm = self.norm_after(call, conv.out_channels)
        weights = conv.weight.numel()
        params = weights + (conv.bias.numel() if conv.bias is not None else 0)
        if norm is not None:
            params += sum(p.numel() for p in self.modules[norm].parameters())
        before = Option("Conv2d", weights, params, weights * call.out[0] * call.out[1])
        return self.site(name, "conv", conv.in_channels, conv.out_channels, stride, call.size, norm, before)

    def pool(self, name: str, pool: nn.MaxPool2d, call: Call) -> Site | str:
        steps = pool.stride if isinstance(pool.stride, tuple) else (pool.stride, pool.stride)
        stride, reason = _stride(steps, call)
        if reason is not None:
            return reason
        channels = self.channels_before(call)
        if channels is None:
            return "its channels are not known: no BatchNorm or convolution stands before it"
        return self.site(name, "pool", channels, channels, stride, call.size, None, Option("MaxPool2d", 0, 0, 0))

    def channels_before(self, call: Call) -> int | None:
        """A pool's channels: of the last layer with channels that ran before it."""
        found = None
        for other in self.trace.calls:
            if other is call:
                return found
            module = self.modules[other.name]
            found = getattr(module, "out_channels", getattr(module, "num_features", found))
        return found

    def norm_after(self, call: Call, channels: int) -> str | None:
        """The BatchNorm that alone reads the layer's result and has nothing else to do."""
        reader = self.trace.only_reader(call.made)
        if reader is None:
            return None
        norm = self.modules[reader.name]
        plain = type(norm) is nn.BatchNorm2d and norm.num_features == channels
        shared = any(self.owners[id(p)] > 1 for p in norm.parameters())
        watched = has_hooks(norm) or reader.name in self.trace.touched
        return reader.name if plain and not shared and not watched and len(self.trace.of(reader.name)) == 1 else None

    def site(
        self, name: str, kind: str, ci: int, co: int, stride: int, size: tuple[int, int], norm: str | None, was: Option
    ) -> Site | str:
        reasons = {op: ops.why_not(op, ci, co, stride) for op in self.operators}
        options = [self.option(op, ci, co, stride, size) for op, reason in reasons.items() if reason is None]
        left = tuple((op, reason) for op, reason in reasons.items() if reason is not None)
        if not options:
            raise ValueError(
                f"reconstruct: operators must offer one or more that fit every layer; got none for {name} "
                f"({ci} to {co} channels, stride {stride}): {'; '.join(f'{op}: {why}' for op, why in left)}. "
                f"Hint: names= leaves the layer out, or add operators that fit"
            )
        if self.choice.order == "cost":
            options.sort(key=lambda option: (option.weights * option.macs, option.weights + option.macs))
        return Site(name, kind, ci, co, stride, size, norm, was, tuple(options), left)

    def option(self, op: str, ci: int, co: int, stride: int, size: tuple[int, int]) -> Option:
        key = (op, ci, co, stride, size)
        if key not in self.memo:
            counted = cost(op, ci, co, stride, size=size)
            with torch.device("meta"):
                params = sum(p.numel() for p in ops.build_operator(op, ci, co, stride).parameters())
            self.memo[key] = Option(op, counted.params, params, counted.macs)
        return self.memo[key]


def _foreign(layer: nn.Module) -> str:
    return f"it is a {type(layer).__name__}, not a plain Conv2d"


def _stride(stride: Sequence[int], call: Call) -> tuple[int, str | None]:
    if stride[0] != stride[1]:
        return 0, f"its stride is {stride[0]}x{stride[1]}, not the same both ways"
    expected = tuple(-(-side // stride[0]) for side in call.size)
    if call.out != expected:
        shown = ["x".join(map(str, size)) for size in (call.size, call.out, expected)]
        return 0, f"it makes {shown[1]} of {shown[0]}, the operators would make {shown[2]}"
    return stride[0], None
