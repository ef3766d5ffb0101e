"""Shapes, values and packing of a multi-path dense block: what every backend gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkernels._core.pairing import check_paths, destination
from lightkernels._core.spec import Layout, Maps, TensorMeta, layout_of, require
from lightkernels._core.taps import check_count

NAME = "mldn_block"


class Inputs(NamedTuple):
    """The tensors of a call, or their TensorMeta; blocks are ordered by layer, then by path.

    x: [N, C, H, W]. In a backward of version 1 None: the output holds it.
    weight1: 1-D, a block [m, c_l] for each layer and path (condensed: [m, c_l / C]), of x's dtype.
    weight3: 1-D, [L, P, kappa, m / groups, T], of x's dtype.
    affine1: [2, columns], gamma and beta of the first norms: a block [c_l] (condensed: as ``index``). As all norms are,
        float64 for a float64 x, else float32.
    affine2: [2, L P m]. bias3: [L P kappa], of x's dtype, or None.
    weight_sfr: version 2: 1-D, a block [c_l, kappa] (condensed: [G1 c_l / C, kappa / G1], as ``index_sfr``);
        affine3: version 2: [2, L P kappa]. Else None.
    running1, running2, running3: mean and variance, laid out as the affine ones; None for batch statistics.
    taps: int64 [L P S, T], or None for the whole window.
    index: int64, a block [G1, c_l / C] of channels of the path, or None. index_sfr: likewise, of version 2: the
        channels that the new channels i with i mod G1 = g are added to. seed: int64 [], or None.
    """

    x: Any
    weight1: Any
    weight3: Any
    affine1: Any
    affine2: Any
    bias3: Any = None
    weight_sfr: Any = None
    affine3: Any = None
    running1: Any = None
    running2: Any = None
    running3: Any = None
    taps: Any = None
    index: Any = None
    index_sfr: Any = None
    seed: Any = None


class Outputs(NamedTuple):
    """y; batch statistics (mean and biased variance), empty where running ones came; and, if
    kept, what ``Spec.mid_shape`` says."""

    y: Tensor
    stats1: Tensor
    stats2: Tensor
    stats3: Tensor
    mid: Tensor


DIFFERENTIABLE = 8


@dataclass(frozen=True)
class Spec(Maps):
    """One call. Per path: c_l channels enter layer l, kappa come out of it, ``mid`` in between."""

    n: int
    c: int
    h: int
    w: int
    layers: int
    paths: int
    growth: int
    bottleneck: int
    groups: int
    version: int
    pairing: str
    kernel_size: int
    taps: int
    sets: int
    has_bias: bool
    eps: float
    dropout: float
    batch_stats: bool
    keep: bool
    index_groups: int
    condense_factor: int
    dtype: torch.dtype
    device: str
    layout: Layout
    x_stride: tuple[int, ...]
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    tuned_by = (
        *("n", "c", "h", "w", "layers", "paths", "growth", "groups", "taps", "condense_factor", "index_groups"),
        *("version", "kernel_size", "batch_stats", "dtype", "layout"),
    )

    @classmethod
    def of(cls, t: Inputs, *values: Any) -> Spec:
        (layers, paths, growth, bottleneck, groups, version, pairing, kernel_size) = values[:8]
        eps, dropout, index_groups, condense_factor, keep = values[8:]
        x = t.x
        require(len(x.shape) == 4, NAME, "x", "have 4 dimensions [N, C, H, W]", x)
        n, c, h, w = x.shape
        for name, value in (
            ("num_layers", layers),
            ("paths", paths),
            ("growth", growth),
            ("bottleneck", bottleneck),
            ("groups", groups),
            ("condense_factor", condense_factor),
        ):
            require(value >= 1, NAME, name, "be at least 1", value)
        require(version in (1, 2), NAME, "version", "be 1 or 2", version)
        check_paths(NAME, c, growth, paths, pairing)
        kappa = growth // paths
        mid = bottleneck * kappa
        whose = f"divide the {kappa} outputs and {mid} inputs of a path's 3x3"
        require(
            kappa % groups == 0 and mid % groups == 0, NAME, "groups", whose, groups, "growth / paths is a multiple."
        )
        require(kernel_size >= 1 and kernel_size % 2 == 1, NAME, "kernel_size", "be odd", kernel_size)
        require(eps > 0, NAME, "eps", "be positive", eps)
        require(0 <= dropout < 1, NAME, "dropout", "be at least 0 and below 1", dropout)
        batch_stats = t.running1 is None
        if batch_stats:
            require(n * h * w > 1, NAME, "x", "have more than one value a channel for batch statistics", x)
        count, sets = kernel_size**2, 0
        if t.taps is not None:
            require(len(t.taps.shape) == 2, NAME, "taps", "have shape [layers * paths * S, T]", t.taps)
            rows, count = t.taps.shape
            sets = rows // (layers * paths)
            fits = rows == sets * layers * paths and sets in (1, groups, kappa)
            require(fits, NAME, "taps", f"have {layers * paths} * S rows, S one of 1, {groups}, {kappa}", t.taps)
            check_count(NAME, count, kernel_size)
        condensed = t.index is not None
        if condensed:
            usable = not batch_stats and dropout == 0
            require(usable, NAME, "index", "be None unless running statistics come and dropout is 0", t.index)
            require(index_groups >= 1, NAME, "index_groups", "be at least 1", index_groups)
            hint = "condense_factor and index_groups divide what enters a path and its bottleneck."
            widths = all((c // paths + i * kappa) % condense_factor == 0 for i in range(layers))
            require(widths, NAME, "condense_factor", "divide the channels of every layer", condense_factor, hint)
            require(mid % index_groups == 0, NAME, "index_groups", f"divide {mid}", index_groups, hint)
            fits = version == 1 or kappa % index_groups == 0
            require(fits, NAME, "index_groups", f"divide {kappa}, what a path adds", index_groups)
        spec = cls(
            n=n,
            c=c,
            h=h,
            w=w,
            layers=layers,
            paths=paths,
            growth=growth,
            bottleneck=bottleneck,
            groups=groups,
            version=version,
            pairing=pairing,
            kernel_size=kernel_size,
            taps=count,
            sets=sets,
            has_bias=t.bias3 is not None,
            eps=eps,
            dropout=dropout,
            batch_stats=batch_stats,
            keep=bool(keep),
            index_groups=index_groups if condensed else 0,
            condense_factor=condense_factor if condensed else 1,
            dtype=x.dtype,
            device=x.device.type,
            layout=layout_of(x.shape, x.stride),
            x_stride=tuple(x.stride),
        )
        spec._check(t)
        return spec

    def _check(self, t: Inputs) -> None:
        """Shapes of all other tensors, and that those are there which belong together."""
        for name, shape in self.shapes().items():
            meta: TensorMeta | None = getattr(t, name)
            if shape is None:
                why = f"be None with version {self.version}, dropout {self.dropout} and these statistics"
                require(meta is None, NAME, name, why, meta)
            elif meta is None:
                require(name == "bias3", NAME, name, f"have shape {list(shape)}", None)
            else:
                fits = len(meta.shape) == len(shape) and all(a == b for a, b in zip(meta.shape, shape, strict=True))
                require(fits, NAME, name, f"have shape {list(shape)}", meta)

    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """Of every input but x and taps; None for those that must be None."""
        many, second = self.layers * self.paths, self.version == 2
        norms = [(2, self.norm_columns), (2, many * self.mid), (2, many * self.kappa) if second else None]
        rest = 0 if self.index_groups == 0 else self.columns // self.condense_factor * self.index_groups
        return {
            "weight1": (self.mid * self.columns // self.condense_factor,),
            "weight3": (many * self.kappa * (self.mid // self.groups) * self.taps,),
            "bias3": (many * self.kappa,),
            "weight_sfr": (self.columns * self.kappa // self.condense_factor,) if second else None,
            **{f"affine{i + 1}": shape for i, shape in enumerate(norms)},
            **{f"running{i + 1}": None if self.batch_stats else shape for i, shape in enumerate(norms)},
            "index": (rest,) if rest else None,
            "index_sfr": (rest,) if rest and second else None,
            "seed": () if self.dropout > 0 else None,
        }

    # Widths and places.

    @cached_property
    def kappa(self) -> int:
        return self.growth // self.paths

    @cached_property
    def mid(self) -> int:
        return self.bottleneck * self.kappa

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """c_0, ..., c_L: a path's channels before each layer, and after the last."""
        return tuple(self.c // self.paths + i * self.kappa for i in range(self.layers + 1))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first column of each layer, and how many columns there are, with P c_l a layer."""
        starts = [0]
        for width in self.widths[:-1]:
            starts.append(starts[-1] + self.paths * width)
        return tuple(starts)

    @cached_property
    def columns(self) -> int:
        return self.starts[-1]

    def inputs_of(self, layer: int) -> int:
        """How many channels a path's first norm of this layer has."""
        return self.widths[layer] * max(self.index_groups, 1) // self.condense_factor

    @cached_property
    def norm_columns(self) -> int:
        return self.paths * sum(self.inputs_of(i) for i in range(self.layers))

    def destination(self, layer: int) -> tuple[int, ...]:
        """For each path, the path that its new channels go to."""
        return destination(self.pairing, self.paths, layer)

    def table(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self.destination(i) for i in range(self.layers))

    def by_path(self, t: Tensor) -> Tensor:
        """[N, P, ., H, W]"""
        parts: Tensor = t.unflatten(1, (self.paths, -1))
        return parts

    def prefix(self, y: Tensor, layer: int = 0) -> Tensor:
        """[N, P, c_l, H, W] of the buffer: what this layer reads. Of the first: where x lies."""
        return self.by_path(y)[:, :, : self.widths[layer]]

    @cached_property
    def empty(self) -> bool:
        return 0 in self.x_shape

    # Shapes, strides, dtypes.

    @cached_property
    def y_shape(self) -> tuple[int, ...]:
        return (self.n, self.paths * self.widths[-1], self.h, self.w)

    @cached_property
    def stats_shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        if not self.batch_stats:
            return (2, 0), (2, 0), (2, 0)
        many = self.layers * self.paths
        first = self.columns if self.version == 2 else self.paths * self.widths[-2]
        return (2, first), (2, many * self.mid), (2, many * self.kappa if self.version == 2 else 0)

    @property
    def mid_shape(self) -> tuple[int]:
        """The 1x1's outputs; in version 2, whose output has other values of them, the 3x3's too, and what the channels
        that a layer reads lost to rounding when they were added to."""
        channels = self.layers * self.mid
        if self.version == 2:
            channels += self.layers * self.kappa + self.widths[-2]
        return (self.n * self.paths * channels * self.h * self.w if self.keep else 0,)

    @property
    def mid_layout(self) -> Layout:
        """In which the kept values lie. A backward reads what any backend's forward kept, and on the CPU that of the
        native kernels, which compute in planes, is the one not to be turned round."""
        return "nchw" if self.device == "cpu" else self.layout

    # What the machinery asks.

    def kept(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of the outputs after y."""
        return [*((shape, self.acc_dtype) for shape in self.stats_shapes), (self.mid_shape, self.dtype)]

    @property
    def needs_input(self) -> bool:
        """Version 2 changes x's channels in the output; in version 1 they are there."""
        return self.version == 2

    @property
    def any_layout(self) -> bool:
        return True

    @property
    def inference(self) -> bool:
        return not self.batch_stats and not self.keep

    @property
    def definition_only(self) -> bool:
        return self.index_groups > 0

    @cached_property
    def threshold(self) -> int:
        """A hash below it is dropped."""
        return min(2**32 - 1, round(self.dropout * 2**32))

    # Work.

    def flops(self) -> int:
        """2 x the multiply-adds of the forward's convolutions, padding included; masked weights count."""
        pixels, many = self.n * self.h * self.w, self.layers * self.paths
        first = self.columns // self.condense_factor * self.mid
        third = many * self.kappa * (self.mid // self.groups) * self.taps
        sfr = self.columns // self.condense_factor * self.kappa if self.version == 2 else 0
        return 2 * pixels * (first + third + sfr)

    def _traffic(self, prefix: int, rest: int) -> int:
        """Bytes, for so many passes over what each layer reads, and so many channels a growth besides."""
        total = sum(prefix * self.paths * width for width in self.widths[:-1]) + rest * self.growth * self.layers
        return self.dtype.itemsize * self.n * self.h * self.w * total

    def bytes(self) -> int:
        """Least traffic of the forward: (C_l + 9 k) S a layer with batch statistics, else (C_l + k) S."""
        return self._traffic(1, 2 * self.bottleneck + 1 if self.batch_stats else 1)

    def training_bytes(self) -> int:
        """Least traffic of a training step: (4 C_l + 29 k) S a layer, for a bottleneck of 4."""
        return self._traffic(4, 6 * self.bottleneck + 5)
