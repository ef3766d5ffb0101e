"""The layer of randomly selected dilated convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core import taps as sets
from lightkernels._core.spec import fail_type, pair, require
from lightkernels.functional import rsdc2d
from lightkernels.nn import _arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[int, int]
Scope = Literal["filter", "group", "layer"]
Center = Literal["free", "always"]
Resample = Literal["never", "epoch", "forward"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
SCOPES, CENTERS, RESAMPLES = ("filter", "group", "layer"), ("free", "always"), ("never", "epoch", "forward")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
torch.fx.wrap("rsdc2d")


class RSDC2d(nn.Module):
    """A convolution of a few cells of a large window, drawn at random: nine of 5x5 at the price of 3x3.

    The arguments by position are those of ``nn.Conv2d``, with their meanings; only the defaults of ``kernel_size`` and
    ``padding`` differ.

    Shapes: input ``[N, in_channels, H, W]`` or ``[in_channels, H, W]``; output
    ``(H + 2 padding - dilation (kernel_size - 1) - 1) // stride + 1`` high, and as wide.

    Args:
        kernel_size: the side of the window, odd.
        padding: int, pair, ``"valid"`` or ``"same"``, which is ``dilation * (kernel_size // 2)`` at any stride.
        groups: ``in_channels == out_channels == groups`` is depthwise.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device, dtype: of the parameters, as in ``nn.Conv2d``.
        taps: how many cells each set has.
        scope: whose own a set is: a ``"filter"``'s (the paper's Figure 4), a ``"group"``'s, or the whole ``"layer"``'s;
            the last two are faster.
        center: ``"always"`` has the middle cell in every set.
        resample: when new sets are drawn. ``"never"``: at construction alone. ``"epoch"``: at each call of ``train()``
            after the sets were used in training, so call it once an epoch. ``"forward"``: in each forward in training,
            for that call; what is stored stays. Evaluation always uses the stored sets.
        generator: of the CPU; draws the sets, at construction and later, the default one if None. Data-parallel
            processes that resample at each forward must all have one with the same seed.

    Parameters: ``weight`` ``[out_channels, in_channels / groups, taps]``, ``bias`` ``[out_channels]``, initialised as
    ``nn.Conv2d``'s with the fan-in of the taps. Buffer: ``taps`` int64 ``[S, taps]``, S = 1, groups or
    out_channels, the cells ``y * kernel_size + x``; it is in the state dict, since weights mean nothing without it,
    and what is loaded is checked. Average parameters, not buffers, for a moving average of the model.

    Raises TypeError and ValueError at construction for arguments that fit no layer.

    Equivalent to: ``layer.to_conv2d()(x)``

    >>> import torch, lightkernels as lk
    >>> layer, x = lk.nn.RSDC2d(8, 16, generator=torch.Generator().manual_seed(0)), torch.randn(2, 8, 9, 9)
    >>> torch.allclose(layer(x), layer.to_conv2d()(x), atol=1e-5)
    True
    >>> layer.taps.shape, layer.weight.shape
    (torch.Size([16, 9]), torch.Size([16, 8, 9]))

    Source: Park and Chang, Sensors 2021, 21, 7862, Section 3.3. The authors' published code is an ordinary 3x3
    convolution; this follows the paper's text.
    """

    bias: nn.Parameter | None
    taps: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair = 5,
        stride: int | Pair = 1,
        padding: int | Pair | str = "same",
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        taps: int = 9,
        scope: Scope = "filter",
        center: Center = "free",
        resample: Resample = "never",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.in_channels = _arguments.positive_int(op, "in_channels", in_channels)
        self.out_channels = _arguments.positive_int(op, "out_channels", out_channels)
        self.kernel_size = _arguments.int_pair(op, "kernel_size", kernel_size)
        side = self.kernel_size[0]
        hint = "an even window has no centre."
        require(self.kernel_size == (side, side), op, "kernel_size", "be square", kernel_size)
        require(side % 2 == 1, op, "kernel_size", "be odd", kernel_size, hint)
        self.stride = _arguments.int_pair(op, "stride", stride)
        self.dilation = _arguments.int_pair(op, "dilation", dilation)
        self.padding: Pair | str = padding if isinstance(padding, str) else pair(op, "padding", padding)
        self._pads = _pads(op, self.padding, side, self.dilation)
        self.groups = _arguments.positive_int(op, "groups", groups)
        require(in_channels % groups == 0, op, "groups", f"divide in_channels, {in_channels}", groups)
        require(out_channels % groups == 0, op, "groups", f"divide out_channels, {out_channels}", groups)
        _arguments.one_of(op, "padding_mode", padding_mode, PADDING_MODES)
        self.padding_mode: PaddingMode = padding_mode
        sets.check_count(op, _arguments.positive_int(op, "taps", taps), side)
        for name, value, allowed in (
            ("scope", scope, SCOPES),
            ("center", center, CENTERS),
            ("resample", resample, RESAMPLES),
        ):
            _arguments.one_of(op, name, value, allowed)
        if not isinstance(generator, torch.Generator | None) or (generator and generator.device.type != "cpu"):
            fail_type(op, "generator", "be a torch.Generator of the CPU or None", generator)
        self.scope, self.center, self.resample, self.generator = scope, center, resample, generator
        count = {"filter": out_channels, "group": groups, "layer": 1}[scope]
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, taps, device=device, dtype=dtype)
        )  # fmt: skip
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.register_buffer("taps", torch.empty(count, taps, dtype=torch.int64, device=device))
        self._used = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the sets, every weight and the bias anew, as at construction."""
        self.resample_taps()
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = (self.weight.shape[1] * self.weight.shape[2]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def _draw(self) -> Tensor:
        count, taps = self.taps.shape
        center = self.center == "always"
        return sets.draw(count, taps, self.kernel_size[0], center=center, generator=self.generator)

    @torch.no_grad()
    def resample_taps(self) -> None:
        """Draws new sets into the buffer, in whatever mode; weights stay, each at its place in the set."""
        # In place: who keeps the buffer, such as DistributedDataParallel, has the new cells.
        self.taps.copy_(self._draw())
        sets.trust(self.taps, self.kernel_size[0])
        self._used = False

    def train(self, mode: bool = True) -> RSDC2d:
        if mode and self.resample == "epoch" and self._used:
            self.resample_taps()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        taps, side = self.taps, self.kernel_size[0]
        if self.training and self.resample != "never":
            if self.resample == "forward":
                taps = self._draw().to(taps.device)
                sets.trust(taps, side)
            else:
                self._used = True
        batched, pads = _arguments.batched(x), self._pads
        if self.padding_mode != "zeros":
            batched = F.pad(batched, (pads[1], pads[1], pads[0], pads[0]), mode=self.padding_mode)
            pads = (0, 0)
        y = rsdc2d(
            batched,
            self.weight,
            taps,
            self.bias,
            kernel_size=side,
            stride=self.stride,
            padding=pads,
            dilation=self.dilation,
            groups=self.groups,
        )
        return _arguments.batched_as(y, x)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Beside the version: a cell is another one in another window.
        getattr(destination, "_metadata", {}).setdefault(prefix[:-1], {})["kernel_size"] = self.kernel_size[0]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        extra: Any,
        errors: Any,
    ) -> None:
        loaded = state_dict.get(prefix + "taps")
        if loaded is not None:
            try:
                side = self.kernel_size[0]
                wide = (metadata or {}).get("kernel_size", side)
                hint = "the cell y * k + x is another one in another window."
                require(wide == side, type(self).__name__, "taps", f"be cells of a window of {side}", wide, hint)
                sets.check_values(type(self).__name__, loaded, side)
            except (TypeError, ValueError) as error:
                errors.append(f"{prefix}taps: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, extra, errors)

    def _dense_weight(self) -> Tensor:
        """[out_channels, in_channels / groups, k, k], zero but for the taps."""
        filters, part, _ = self.weight.shape
        side = self.kernel_size[0]
        where = self.taps.repeat_interleave(filters // len(self.taps), 0)[:, None].expand(self.weight.shape)
        return (
            self.weight.new_zeros(filters, part, side * side).scatter(2, where, self.weight).view(-1, part, side, side)
        )

    def to_conv2d(self) -> nn.Conv2d:
        """A new ``nn.Conv2d`` of the whole window that computes the same with the stored sets.

        Equivalent to: ``layer.to_conv2d()(x) == layer(x)`` up to rounding.
        """
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self._pads,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self._dense_weight())
            if conv.bias is not None and self.bias is not None:
                conv.bias.copy_(self.bias)
        conv.weight.requires_grad_(self.weight.requires_grad)
        if conv.bias is not None and self.bias is not None:
            conv.bias.requires_grad_(self.bias.requires_grad)
        return conv.train(self.training)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        kernel_size: int = 5,
        *,
        place: Literal["random", "center"] = "random",
        scope: Scope | None = None,
        center: Center = "free",
        resample: Resample = "never",
        generator: torch.Generator | None = None,
    ) -> RSDC2d:
        """A new layer with a convolution's weights in the cells of a larger window, and the same output size.

        Args:
            conv: square and odd; its k * k weights become as many taps.
            kernel_size: of the new window, at least the convolution's.
            place: ``"random"``: cells are drawn, and hold the weights in the order of the rows; ``"center"``: the
                middle k x k cells, which computes exactly what ``conv`` computes.
            scope, center, resample, generator: as of the class; scope by default ``"filter"``, and ``"layer"`` for
                ``"center"``, where all sets are equal.

        Raises:
            TypeError: for what is not an ``nn.Conv2d``. ValueError: for one that does not fit.

        Equivalent to: ``RSDC2d.from_conv2d(conv, place="center")(x) == conv(x)``
        """
        op = f"{cls.__name__}.from_conv2d"
        if not isinstance(conv, nn.Conv2d) or isinstance(conv.weight, nn.UninitializedParameter):
            fail_type(op, "conv", "be an nn.Conv2d with weights", conv)
        _arguments.one_of(op, "place", place, ("random", "center"))
        old, wide = conv.kernel_size[0], _arguments.positive_int(op, "kernel_size", kernel_size)
        fits = conv.kernel_size == (old, old) and old % 2 == 1
        require(fits, op, "conv", "have an odd square kernel", conv.kernel_size)
        require(wide >= old, op, "kernel_size", f"be at least the convolution's, {old}", kernel_size)
        dilation = (conv.dilation[0], conv.dilation[1])
        before = _pads(op, conv.padding, old, dilation)
        grown = [p + d * (wide - old) // 2 for p, d in zip(before, dilation, strict=True)]
        same = (dilation[0] * (wide // 2), dilation[1] * (wide // 2))
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            wide,
            (conv.stride[0], conv.stride[1]),
            "same" if tuple(grown) == same else (grown[0], grown[1]),
            dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            taps=old * old,
            scope=scope or ("layer" if place == "center" else "filter"),
            center=center,
            resample=resample,
            generator=generator,
        )
        with torch.no_grad():
            layer.weight.copy_(conv.weight.flatten(2))
            if place == "center":
                cells = torch.arange(wide * wide).view(wide, wide)
                start = (wide - old) // 2
                middle = cells[start : start + old, start : start + old].flatten()
                layer.taps.copy_(middle.expand(layer.taps.shape))
            if layer.bias is not None and conv.bias is not None:
                layer.bias.copy_(conv.bias)
        layer.weight.requires_grad_(conv.weight.requires_grad)
        if layer.bias is not None and conv.bias is not None:
            layer.bias.requires_grad_(conv.bias.requires_grad)
        return layer.train(conv.training)

    def plot_taps(self, limit: int = 24) -> Figure:
        """A figure of the first ``limit`` sets, and of how many filters have each cell. Needs matplotlib."""
        from lightkernels.nn._plot import tap_figure

        _arguments.positive_int(f"{type(self).__name__}.plot_taps", "limit", limit)

        return tap_figure(self.taps.cpu(), self.kernel_size[0], self.out_channels, limit)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts.append(f"taps={self.taps.shape[1]}, scope={self.scope!r}, padding={self.padding!r}")
        others = {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros", "center": "free", "resample": "never"}
        parts += [f"{name}={getattr(self, name)!r}" for name, usual in others.items() if getattr(self, name) != usual]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


def _pads(op: str, padding: Any, side: int, dilation: tuple[int, ...]) -> Pair:
    """Rows and columns of padding on each side, as numbers."""
    if isinstance(padding, str):
        require(padding in ("same", "valid"), op, "padding", "be an int, a pair of ints, 'same' or 'valid'", padding)
        reach = side // 2 if padding == "same" else 0
        return (dilation[0] * reach, dilation[1] * reach)
    require(min(padding) >= 0, op, "padding", "be at least 0", padding)
    return (padding[0], padding[1])
