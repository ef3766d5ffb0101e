"""``lightkernels explain OP``: the operator's own arguments, tensors given by their shapes. Nothing is computed."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightkernels import explain, ops
from lightkernels._core.backends import NAMES

DTYPES = ("float32", "float64", "bfloat16", "float16")
EXAMPLE = "lightkernels explain multi_dwconv2d --x 8x64x32x32 --kernels 3,5,7 --layout nhwc"


def operators() -> dict[str, Callable[..., Any]]:
    """The public functions of all operators, by name."""
    return {name: getattr(package, name) for name, package in sorted(vars(ops).items()) if hasattr(package, "OP")}


def run(args: Sequence[str]) -> str:
    """The explanation of one call, as text.

    Raises:
        ValueError, TypeError: as the operator does for such arguments.
        SystemExit: by argparse.
    """
    known = operators()
    first = argparse.ArgumentParser("lightkernels explain", epilog=f"for example: {EXAMPLE}", add_help=False)
    first.add_argument("op", metavar="OP", choices=known, help=f"one of {', '.join(known)}")
    if not args or args[0] in ("-h", "--help"):
        first.print_help()
        raise SystemExit(0 if args else 2)
    name = first.parse_args(args[:1]).op
    given = _parser(name, known[name]).parse_args(args[1:])
    with FakeTensorMode():  # shapes and strides without memory, also for a device that is not here
        found = explain(name, **_arguments(known[name], given))
    return json.dumps(dataclasses.asdict(found), indent=2) if given.json else str(found)


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.lower().split("x"))
    if min(sizes) < 0:
        raise ValueError
    return sizes


def _shapes(text: str) -> list[tuple[int, ...]]:
    return [_shape(part) for part in text.split(",")]


def _ints(text: str) -> int | tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    return values if "," in text else values[0]


def _ints_or_word(text: str) -> int | tuple[int, ...] | str:
    return text if text.isalpha() else _ints(text)


def _device(text: str) -> str:
    try:
        torch.device(text)
    except RuntimeError as error:
        raise ValueError from error
    return text


_shape.__name__, _shapes.__name__, _ints.__name__, _device.__name__ = "shape", "shapes", "integers", "device"
_ints_or_word.__name__ = "integers or a word"
# Arguments that hold places, not values.
INTEGRAL = ("taps", "index", "index_sfr", "seed")


def _kind(hint: Any) -> Any:
    """What an argument is given as: Tensor, Sequence (of tensors), bool, str or int."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else ()
    if hint is Tensor or (Tensor in options and isinstance(hint, types.UnionType)):
        return Tensor
    if Tensor in options:
        return Sequence
    return next((kind for kind in (bool, float, int, str) if hint is kind or kind in options), int)


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    return {name: _kind(hints[name]) for name in inspect.signature(function).parameters}


def _parser(name: str, function: Callable[..., Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"lightkernels explain {name}", epilog=f"for example: {EXAMPLE}")
    parameters = inspect.signature(function).parameters
    for argument, kind in _kinds(function).items():
        needed = parameters[argument].default is inspect.Parameter.empty
        if kind is Tensor:
            parser.add_argument(
                f"--{argument}", type=_shape, metavar="SHAPE", required=needed, help="such as 8x64x32x32"
            )
        elif kind is Sequence:
            either = parser.add_mutually_exclusive_group(required=needed)
            either.add_argument(f"--{argument}", type=_shapes, metavar="SHAPES", help="such as 64x1x3x3,64x1x5x5")
            either.add_argument("--kernels", type=_ints, metavar="K,K", help="depthwise kernel sizes, such as 3,5,7")
        elif kind is bool:
            parser.add_argument(f"--{argument}", action="store_true")
        elif argument == "backend":
            parser.add_argument("--backend", choices=NAMES)
        else:
            parser.add_argument(f"--{argument}", type=kind if kind in (str, float) else _ints_or_word, required=needed)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu, cuda, ...; it need not be here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _arguments(function: Callable[..., Any], given: argparse.Namespace) -> dict[str, Any]:
    def tensor(shape: Sequence[int], name: str = "") -> Tensor:
        dtype = torch.int64 if name in INTEGRAL else getattr(torch, given.dtype)
        images = given.layout == "nhwc" and len(shape) == 4
        form = torch.channels_last if images else torch.contiguous_format
        try:
            return torch.empty(tuple(shape), dtype=dtype, device=given.device, memory_format=form)
        except (RuntimeError, OverflowError) as error:
            raise ValueError(f"no tensor has the shape {'x'.join(map(str, shape))}: {error}") from error

    call: dict[str, Any] = {}
    for name, kind in _kinds(function).items():
        value = getattr(given, name)
        if kind is Sequence:
            shapes = value if given.kernels is None else _depthwise(given)
            call[name] = [tensor(shape) for shape in shapes]
        elif value is not None:
            call[name] = tensor(value, name) if kind is Tensor else value
    return call


def _depthwise(given: argparse.Namespace) -> list[tuple[int, ...]]:
    """The shapes of ``--kernels`` on the channels of ``--x``, shared out among them with ``--split``."""
    kernels = (given.kernels,) if isinstance(given.kernels, int) else given.kernels
    channels = given.x[1] if len(given.x) > 1 else 1
    part = channels // len(kernels)
    widths = [channels - part * (len(kernels) - 1), *[part] * (len(kernels) - 1)]
    return [(m if given.split else channels, 1, k, k) for m, k in zip(widths, kernels, strict=True)]
