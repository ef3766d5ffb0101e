"""The operators by name: what they are, where they fit, what they cost, and the sets of the paper."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from lightkernels._core.spec import ceil_div, fail_type, require
from lightkernels.compress import operators_modules as modules
from lightkernels.compress.operators_layers import DepthwiseConv2d, GroupedConv2d, plain
from lightkernels.nn import MultiDepthwiseConv2d
from lightkernels.nn._arguments import positive_int

__all__ = ["SETS", "build_operator", "list_operators", "plain", "register_operator", "why_not"]

SETS: dict[str, tuple[str, ...]] = {
    name: tuple(text.split())
    for name, text in {
        "SOP1": "N_3x3 N_3x3_2 N_3x3_4 N_3x3_8 Sep_3x3 C_3x3 C_3x3_2 C_3x3_4 Dil_5x5 Sep_5x5",
        "SOP2": "N_3x3 N_3x3_2 N_3x3_4 Sep_5x5 Dil_3x3 N_3x3_8 N_3x3_16 Sep_3x3 Sep_7x7 Dil_5x5",
        "SOP3": "N_3x3 N_3x3_2 N_3x3_4 Sep_res_3x3 Sep_3x3 Fire C_3x3 C_3x3_2 Sep_res_5x5 Sep_5x5",
        "SOP4": "Fire C_3x3_2 Sep_res_3x3_4 Sep_res_5x5_4 C_3x3_4 N_3x3 Dil_res_3x3_4 Dil_res_5x5_4",
        "SOP5": "N_3x3 N_3x3_2 N_3x3_4 Sep_res_3x3 Dil_res_3x3 Fire C_3x3 C_3x3_2 Sep_res_5x5 Dil_res_5x5",
        "SOP6": "Fire C_3x3_16 Sep_res_5x5_8 Sep_5x5_8 C_3x3_8 N_3x3_16 Dil_res_5x5_8 Dil_5x5_8",
        "SOP7": "N_3x3 N_3x3_2 N_3x3_4 Dil_res_5x5 Fire C_3x3 C_3x3_2 Sep_res_5x5",
        "SOP8": "N_3x3 N_3x3_2 N_3x3_4 Dil_res_5x5_8 Fire C_3x3_4 C_3x3_8 Sep_res_5x5_8",
        "SOP9": "N_3x3 N_3x3_2 N_3x3_4 Dil_3x3 Fire Dil_5x5 Sep_3x3 Sep_5x5",
        "SOP10": "N_1x1 N_1x1_2 N_1x1_4 N_1x1_8 C_3x3_4 N_3x3_4 N_3x3_8 Fire",
        "RSDC": "N_3x3 N_3x3_2 N_3x3_4 Multi_357 RSDC_5x5 RSDC_5x5_2 RSDC_5x5_4 Sep_3x3",
    }.items()
}

Size = tuple[int, int]
# (in_channels, out_channels, stride, act) -> module
Build = Callable[[int, int, int, bool], nn.Module]
WhyNot = Callable[[int, int, int], "str | None"]
# (in_channels, out_channels, stride, input size) -> (convolution weights, multiply-adds of one image)
Count = Callable[[int, int, int, Size], tuple[int, int]]


@dataclass(frozen=True)
class Kind:
    """What a name stands for. `build` takes (in_channels, out_channels, stride, act, affine)."""

    build: Callable[[int, int, int, bool, bool], nn.Module]
    why_not: WhyNot
    count: Count | None
    random: bool = False


_registered: dict[str, Kind] = {}


def squeeze(out_channels: int) -> int:
    return min(out_channels // 4, 64)


def _outputs(size: Size, stride: int) -> int:
    return ceil_div(size[0], stride) * ceil_div(size[1], stride)


def _multiple(groups: int, out_groups: int) -> WhyNot:
    def why_not(ci: int, co: int, stride: int) -> str | None:
        for channels, what, of in ((ci, "input", groups), (co, "output", out_groups)):
            if channels % of:
                return f"its {channels} {what} channels are not a multiple of {of}"
        return None

    return why_not


def _same(ci: int, co: int, stride: int) -> str | None:
    return None if ci == co else f"its {ci} input channels are not its {co} output channels"


def _unchanged(ci: int, co: int, stride: int) -> str | None:
    return _same(ci, co, stride) or (None if stride == 1 else f"its stride is {stride}")


def _fire_fits(ci: int, co: int, stride: int) -> str | None:
    return None if co % 4 == 0 else f"its {co} output channels are not a multiple of 4"


def _one_layer(weights: Callable[[int, int], int]) -> Count:
    """All weights are used once at every output pixel."""

    def count(ci: int, co: int, stride: int, size: Size) -> tuple[int, int]:
        return weights(ci, co), weights(ci, co) * _outputs(size, stride)

    return count


def _normal(k: int, g: int) -> Kind:
    return Kind(
        lambda ci, co, s, act, affine: modules.Convolution(GroupedConv2d(ci, co, k, s, g), co, g, act, affine),
        _multiple(g, g),
        _one_layer(lambda ci, co: k * k * ci * co // g),
    )


def _rsdc(k: int, g: int) -> Kind:
    return Kind(
        lambda ci, co, s, act, affine: modules.Convolution(modules.rsdc(ci, co, k, s, g), co, g, act, affine),
        _multiple(g, g),
        _one_layer(lambda ci, co: 9 * ci * co // g),
    )


def _crelu(k: int, g: int) -> Kind:
    return Kind(
        lambda ci, co, s, act, affine: modules.CReLUConvolution(ci, co, s, g, affine),
        _multiple(g, 2 * g),
        _one_layer(lambda ci, co: 9 * ci * co // (2 * g)),
    )


def _separable(k: int, g: int, dilation: int) -> Kind:
    return Kind(
        lambda ci, co, s, act, affine: modules.Separable(DepthwiseConv2d(ci, k, s, dilation), ci, co, g, act, affine),
        _multiple(g, g),
        _one_layer(lambda ci, co: k * k * ci + ci * co // g),
    )


def _residual(k: int, g: int, dilation: int) -> Kind:
    def count(ci: int, co: int, stride: int, size: Size) -> tuple[int, int]:
        first, second = k * k * ci + ci * ci // g, k * k * ci + ci * co // g
        return first + second, first * size[0] * size[1] + second * _outputs(size, stride)

    return Kind(
        lambda ci, co, s, act, affine: modules.ResidualSeparable(ci, co, k, s, dilation, g, act, affine),
        _multiple(g, g),
        count,
    )


def _count_fire(ci: int, co: int, stride: int, size: Size) -> tuple[int, int]:
    s = squeeze(co)
    return s * ci + 5 * s * co, ci * s * size[0] * size[1] + 5 * s * co * _outputs(size, stride)


def _count_pool(ci: int, co: int, stride: int, size: Size) -> tuple[int, int]:
    return 0, 9 * ci * _outputs(size, stride)


def _many(g: int) -> Kind:
    return Kind(
        lambda ci, co, s, act, affine: modules.Separable(
            MultiDepthwiseConv2d(ci, stride=s, combine="add"), ci, co, g, act, affine
        ),
        _multiple(g, g),
        _one_layer(lambda ci, co: 83 * ci + ci * co // g),
    )


def _count_multiception(ci: int, co: int, stride: int, size: Size) -> tuple[int, int]:
    depthwise, pointwise = 83 * ci, 3 * ci * co
    return depthwise + pointwise + co, depthwise * size[0] * size[1] + pointwise * _outputs(size, stride)


_FAMILIES: tuple[tuple[str, Callable[[int, int], Kind]], ...] = (
    (r"N_(?P<k>[13])x(?P=k)(_(?P<g>\d+))?", _normal),
    (r"C_(?P<k>3)x3(_(?P<g>\d+))?", _crelu),
    (r"Sep_(?P<k>[357])x(?P=k)(_(?P<g>\d+))?", lambda k, g: _separable(k, g, 1)),
    (r"Dil_(?P<k>[35])x(?P=k)(_(?P<g>\d+))?", lambda k, g: _separable(k, g, 2)),
    (r"Sep_res_(?P<k>[357])x(?P=k)(_(?P<g>\d+))?", lambda k, g: _residual(k, g, 1)),
    (r"Dil_res_(?P<k>[35])x(?P=k)(_(?P<g>\d+))?", lambda k, g: _residual(k, g, 2)),
    (r"RSDC_(?P<k>[57])x(?P=k)(_(?P<g>\d+))?", _rsdc),
    (r"Multi_(?P<k>3)57(_(?P<g>\d+))?", lambda k, g: _many(g)),
)
_SINGLE: dict[str, Kind] = {
    "Fire": Kind(
        lambda ci, co, s, act, affine: modules.Fire(ci, co, s, squeeze(co), act, affine), _fire_fits, _count_fire
    ),
    "Multiception": Kind(
        lambda ci, co, s, act, affine: modules.Multiception(ci, co, s, act, affine),
        lambda ci, co, s: None,
        _count_multiception,
    ),
    "skip_connect": Kind(lambda ci, co, s, act, affine: modules.Skip(), _unchanged, lambda *_: (0, 0)),
    "avg_pool_3x3": Kind(lambda ci, co, s, act, affine: modules.Pool("avg", s), _same, _count_pool),
    "max_pool_3x3": Kind(lambda ci, co, s, act, affine: modules.Pool("max", s), _same, _count_pool),
}


def list_operators(pattern: str = "*") -> list[str]:
    """Names in the sets and those registered that match a shell pattern, sorted.

    Any number of groups may follow a family's name: ``N_3x3_32`` is an operator too.

    >>> from lightkernels.compress.operators import list_operators
    >>> list_operators("C_*")
    ['C_3x3', 'C_3x3_16', 'C_3x3_2', 'C_3x3_4', 'C_3x3_8']
    """
    names = {name for operators in SETS.values() for name in operators} | set(_SINGLE) | set(_registered)
    return sorted(name for name in names if fnmatchcase(name, pattern))


def kind_of(name: object, op: str = "build_operator") -> Kind:
    """What a name stands for."""
    if not isinstance(name, str):
        fail_type(op, "name", "be a str", name)
    found = _registered.get(name) or _SINGLE.get(name)
    if found is not None:
        return found
    for pattern, family in _FAMILIES:
        match = re.fullmatch(pattern, name)
        if match:
            groups = int(match["g"] or 1)
            if groups > 0 and match["g"] not in ("0", "1"):
                return family(int(match["k"]), groups)
    close = difflib.get_close_matches(name, list_operators(), n=1)
    hint = f"did you mean {close[0]}?" if close else "list_operators() gives all names."
    require(False, op, "name", "be an operator's name", name, hint=hint)
    raise AssertionError


def _check_shape(op: str, in_channels: object, out_channels: object, stride: object) -> None:
    positive_int(op, "in_channels", in_channels)
    positive_int(op, "out_channels", out_channels)
    positive_int(op, "stride", stride)


def why_not(name: str, in_channels: int, out_channels: int, stride: int = 1) -> str | None:
    """Why an operator cannot stand in a layer of this shape, in words; None where it can.

    >>> from lightkernels.compress.operators import why_not
    >>> why_not("N_3x3_16", 24, 24)
    'its 24 input channels are not a multiple of 16'
    """
    kind = kind_of(name, "why_not")
    _check_shape("why_not", in_channels, out_channels, stride)
    return kind.why_not(in_channels, out_channels, stride)


def build_operator(
    name: str,
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    *,
    act: bool = False,
    affine: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The operator called `name`, with new weights.

    Shapes: input ``[N, in_channels, H, W]``, output ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.

    Args:
        act: whether a ReLU follows the last norm. By default the network's own activation comes after the operator.
            ``C_*`` always rectify.
        affine: whether the last norm has a scale and a shift.

    Raises:
        TypeError, ValueError: for arguments that fit no operator; :func:`why_not` tells before.

    Equivalent to: ``nn.Sequential(nn.Conv2d(Ci, Co, 3, s, 1, bias=False), nn.BatchNorm2d(Co))`` for ``N_3x3``

    Source: Diao et al., Sensors 2021, 21, 3464, Table A1, corrected where it contradicts itself: see docs/compress.md.

    >>> import torch
    >>> from lightkernels.compress.operators import build_operator
    >>> build_operator("Sep_res_5x5_8", 16, 32, stride=2)(torch.randn(1, 16, 9, 9)).shape
    torch.Size([1, 32, 5, 5])
    """
    kind = kind_of(name)
    _check_shape("build_operator", in_channels, out_channels, stride)
    reason = kind.why_not(in_channels, out_channels, stride)
    shape = f"{in_channels} to {out_channels} channels with stride {stride}"
    require(reason is None, "build_operator", "name", f"fit a layer of {shape}", name, hint=f"{reason}.")
    return kind.build(in_channels, out_channels, stride, bool(act), bool(affine)).to(device=device, dtype=dtype)


def register_operator(
    name: str,
    build: Build,
    *,
    why_not: WhyNot | None = None,
    cost: Count | None = None,
    random: bool = True,
) -> None:
    """Makes a module of yours an operator of that name.

    Args:
        build: ``(in_channels, out_channels, stride, act)`` to a module from ``[N, in_channels, H, W]`` to
            ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``. In the search it runs in training mode without
            touching the running statistics of norms; other state that its forward changes is not protected.
        why_not: ``(in_channels, out_channels, stride)`` to the reason why it does not fit there, or None.
        cost: ``(in_channels, out_channels, stride, (h, w))`` to its convolution weights and the multiply-adds of one
            image, by default counted.
        random: whether its forward draws random numbers; False saves keeping the generator's state.

    Raises:
        TypeError: for what is no function. ValueError: for a name that is taken.
    """
    op = "register_operator"
    if not isinstance(name, str):
        fail_type(op, "name", "be a str", name)
    for arg, value in (("build", build), ("why_not", why_not), ("cost", cost)):
        if not callable(value) and (arg == "build" or value is not None):
            fail_type(op, arg, "be a function", value)
    free = name not in _registered and name not in _SINGLE and not any(re.fullmatch(p, name) for p, _ in _FAMILIES)
    require(free, op, "name", "be new", name)
    _registered[name] = Kind(
        lambda ci, co, s, act, affine: build(ci, co, s, act), why_not or (lambda ci, co, s: None), cost, random
    )


def _is_known(name: str) -> bool:
    try:
        return kind_of(name) is not None
    except ValueError:
        return False


def operator_set(operators: str | Sequence[str]) -> tuple[str, ...]:
    """The names of a set called by its name, one operator's name, or names; all known and none twice."""
    op = "operator_set"
    if isinstance(operators, str):
        close = difflib.get_close_matches(operators, SETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the sets are {', '.join(SETS)}; or pass a list of names."
        if operators not in SETS and _is_known(operators):
            return (operators,)
        require(operators in SETS, op, "operators", "be a set's name or operators' names", operators, hint=hint)
        return SETS[operators]
    if not isinstance(operators, Sequence):
        fail_type(op, "operators", "be a set's name or a sequence of operators' names", operators)
    names = tuple(operators)
    for name in names:
        kind_of(name, op)
    require(len(names) > 0, op, "operators", "name at least one operator", list(names))
    require(len(set(names)) == len(names), op, "operators", "name no operator twice", list(names))
    return names
