"""The multi-path dense block of MLDN."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lightkernels._core import env, tracing
from lightkernels._core.backends import BackendUnavailable
from lightkernels._core.pairing import Pairing, check_paths, source
from lightkernels._core.spec import fail_type, require
from lightkernels.functional import mldn_block_outputs
from lightkernels.nn import _arguments, _mldn_pack
from lightkernels.nn._mldn_condensed import CondensedMLDNBlock
from lightkernels.nn.condensed import Condensable, like
from lightkernels.nn.learned_group import LearnedGroupConv2d, SparseFeatureReactivation
from lightkernels.nn.rsdc import RSDC2d

Conv = Literal["standard", "rsdc"]


@torch.fx.wrap
def mldn_layers(x: Tensor, layers: nn.Module, values: dict[str, Any]) -> Tensor:
    """What an :class:`MLDNBlock` of these layers makes of x."""
    block = MLDNBlock.__new__(MLDNBlock)
    nn.Module.__init__(block)
    for name, value in values.items():
        setattr(block, name, value)
    block._forget()
    block.layers = layers  # type: ignore[assignment]
    y: Tensor = block(x)
    return y


class MLDNPath(nn.Module):
    """One path of one layer: learned group 1x1, BatchNorm, ReLU, grouped 3x3 or RSDC.

    Children: ``reduce``, ``norm``, ``act``, ``conv``, and in version 2 ``reactivate``, which the block applies.
    """

    reactivate: SparseFeatureReactivation | None

    def __init__(self, channels: int, growth: int, o: dict[str, Any]) -> None:
        super().__init__()
        middle = o["bottleneck"] * growth
        groups = {"groups": o["groups"], "condense_factor": o["condense_factor"]}
        self.reduce = LearnedGroupConv2d(channels, middle, dropout=o["dropout"], **groups)
        self.norm = nn.BatchNorm2d(middle)
        self.act = nn.ReLU()
        if o["conv"] == "rsdc":
            self.conv: nn.Module = RSDC2d(
                middle, growth, o["k_rsdc"], groups=o["groups"], bias=o["rsdc_bias"], generator=o["generator"]
            )  # fmt: skip
        else:
            self.conv = nn.Conv2d(middle, growth, 3, padding=1, groups=o["groups"], bias=False)
        self.reactivate = None
        if o["version"] == 2:
            self.reactivate = SparseFeatureReactivation(growth, channels, zero_init=o["sfr_zero_init"], **groups)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(self.act(self.norm(self.reduce(x))))
        return h


class MLDNLayer(nn.Module):
    """All paths of one layer; ``sources[p]`` is the path whose result path p receives."""

    def __init__(self, paths: list[MLDNPath], sources: list[int]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.sources = sources

    def forward(self, x: Tensor) -> Tensor:
        paths, pieces = cast("list[MLDNPath]", self.paths), x.chunk(len(self.paths), 1)
        hidden = [path(piece) for path, piece in zip(paths, pieces, strict=True)]
        kept = [
            piece if path.reactivate is None else path.reactivate(h, piece)
            for path, h, piece in zip(paths, hidden, pieces, strict=True)
        ]
        return torch.cat([t for p, piece in enumerate(kept) for t in (piece, hidden[self.sources[p]])], 1)


class MLDNBlock(Condensable):
    """A dense block of several paths: each layer adds ``growth / paths`` channels to every path, made by its partner.

    Shapes: input ``[N, in_channels, H, W]``, output ``[N, in_channels + num_layers * growth, H, W]``: the paths one
    after another, each its part of the input and what it received. The whole block is one operator,
    :func:`lightkernels.mldn_block`; where modules within it do what the operator does not (a converted SyncBatchNorm,
    norms of which some are frozen, a replaced convolution), its layers run one by one, and a warning says why.

    Args:
        in_channels, growth: divisible by ``paths``; the channels of a path are divisible by ``condense_factor`` in
            every layer, and those it adds by ``groups``. num_layers: of the block.
        paths: 1 (a CondenseNet block) or even.
        version: 2 adds sparse feature reactivation of each path's own new channels to what the path has.
        bottleneck: a path has ``bottleneck * growth / paths`` channels between its convolutions.
        groups, condense_factor: of the learned 1x1 and the reactivation; the 3x3 has ``groups`` groups too.
        conv: ``"rsdc"`` draws nine cells of a ``k_rsdc`` window for every filter (:class:`RSDC2d`, with ``rsdc_bias``).
        dropout: before each 1x1 in training. The mask is a function of a seed that torch's generator draws.
        pairing: the partner, ``"xor1"`` (the paper's), ``"butterfly"`` or ``"rotate"``; see the operator.
        recompute: less is kept for the backward, which computes the 1x1 once more. None: where that takes no longer.
        sfr_zero_init: of version 2: reactivation starts as nothing. generator: of RSDC's taps.

    Children: ``layers[l].paths[p]`` with ``reduce`` (:class:`LearnedGroupConv2d`), ``norm``, ``conv`` and
    ``reactivate``; :func:`set_condensation_progress` prunes them. All norms are ``nn.BatchNorm2d`` and mean what they
    mean by themselves: in training they use batch statistics, each channel's once, and update their buffers.

    Raises TypeError and ValueError at construction for arguments that fit no block, with the rule that they break.

    Equivalent to: ``block.layered(x)``, up to the draw of the dropout

    >>> import torch, lightkernels as lk
    >>> block, x = lk.nn.MLDNBlock(16, 8, num_layers=3, paths=2), torch.randn(2, 16, 8, 8)
    >>> y = block.eval()(x)
    >>> y.shape, torch.allclose(y, block.layered(x), atol=1e-4)
    (torch.Size([2, 40, 8, 8]), True)

    Source: Park and Chang, Sensors 2021, 21, 7862, Algorithms 1 and 2.
    """

    states_children = True

    def __init__(
        self,
        in_channels: int,
        growth: int,
        num_layers: int,
        paths: int,
        *,
        version: int = 1,
        bottleneck: int = 4,
        groups: int = 4,
        condense_factor: int = 4,
        conv: Conv = "standard",
        k_rsdc: int = 5,
        rsdc_bias: bool = False,
        dropout: float = 0.0,
        pairing: Pairing = "xor1",
        recompute: bool | None = None,
        sfr_zero_init: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        options = dict(locals())
        for name in ("self", "__class__"):
            del options[name]
        check(type(self).__name__, **options)
        self.in_channels, self.growth, self.num_layers, self.paths = in_channels, growth, num_layers, paths
        self.version, self.bottleneck, self.groups = version, bottleneck, groups
        self.condense_factor, self.conv, self.dropout = condense_factor, conv, dropout
        self.pairing, self.recompute = pairing, recompute
        self.kernel_size = k_rsdc if conv == "rsdc" else 3
        part, kappa = in_channels // paths, growth // paths
        self.layers = nn.ModuleList(
            MLDNLayer([MLDNPath(part + i * kappa, kappa, options) for _ in range(paths)], source(pairing, paths, i))
            for i in range(num_layers)
        )
        self._forget()
        self.reset_parameters()

    def _forget(self) -> None:
        """What is kept between calls, packed masks and taps, is made anew."""
        self._masks, self._told = (_mldn_pack.Masks(), _mldn_pack.Masks()), ""
        self._known_taps: tuple[list[tuple[Tensor, int]], Tensor] | None = None

    def reset_parameters(self) -> None:
        """Convolutions anew, normal with variance 2 / (cells * outputs); norms and masks as at construction."""
        for path in self._every():
            path.reduce.reset_parameters()
            path.norm.reset_parameters()
            weight = path.conv.weight
            if isinstance(path.conv, RSDC2d):
                path.conv.reset_parameters()
            assert isinstance(weight, Tensor)
            nn.init.normal_(weight, std=(2 / (weight[0, 0].numel() * weight.shape[0])) ** 0.5)
            if path.reactivate is not None:
                path.reactivate.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_masks": (_mldn_pack.Masks(), _mldn_pack.Masks()), "_known_taps": None}

    def _every(self) -> Iterator[MLDNPath]:
        for layer in self.layers:
            yield from cast("list[MLDNPath]", layer.paths)

    def layered(self, x: Tensor) -> Tensor:
        """The block as its modules, one after another."""
        for layer in self.layers:
            x = layer(x)
        return x

    def why_layered(self) -> str | None:
        """Why the block runs as its modules; None if it runs as one operator."""
        return self._why(_mldn_pack.Parts(self.layers))

    def _why(self, parts: _mldn_pack.Parts) -> str | None:
        return "a module within the block has hooks" if parts.hooked() else parts.why_layered()

    def _tell(self, reason: str) -> None:
        text = f"MLDNBlock runs layer by layer: {reason}."
        if "hooks" in reason:
            env.logger.info(text)
        elif env.STRICT:
            raise BackendUnavailable(f"LIGHTKERNELS_STRICT=1 and {text}")
        elif self._told != reason:
            self._told = reason
            warnings.warn(text, stacklevel=3)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, torch.fx.Proxy):
            return self._as_node(x)
        parts = _mldn_pack.Parts(self.layers)
        reason = self._why(parts)
        if reason is not None:
            self._tell(reason)
            return self.layered(x)
        norm, conv, reduces = parts.norms[0][0], parts.convs[0], parts.reduces
        batch = norm.training or norm.running_mean is None
        weight = _mldn_pack.flat_of(reduces, "weight")
        call: dict[str, Any] = {
            "x": x,
            "weight1": weight * self._masks[0].of(reduces, weight.dtype),
            "weight3": _mldn_pack.flat_of(parts.convs, "weight"),
            "eps": norm.eps,
            "dropout": self.dropout if reduces[0].training else 0.0,
            **self._values(),
        }
        for i, group in enumerate(parts.norms):
            if group:
                call[f"affine{i + 1}"] = _mldn_pack.affine(group)
                if not batch:
                    call[f"running{i + 1}"] = _mldn_pack.running(group)
        if isinstance(conv, RSDC2d):
            call["taps"] = self._taps(parts.convs)
        if conv.bias is not None:
            call["bias3"] = _mldn_pack.flat_of(parts.convs, "bias")
        if parts.reactivates:
            sfr = _mldn_pack.flat_of(parts.reactivates, "weight")
            call["weight_sfr"] = sfr * self._masks[1].of(parts.reactivates, sfr.dtype)
        if call["dropout"]:
            call["seed"] = torch.randint(2**62, (), device=x.device)
        out = mldn_block_outputs(**call, recompute=self.recompute)
        if batch:
            self._update(parts.norms, out, x)
        y: Tensor = out.y
        return y

    def _as_node(self, x: Any) -> Tensor:
        """In torch.fx's graphs the block is one call, of its children as they are when the graph runs."""
        root = x.tracer.root is self
        path = "layers" if root else f"{x.tracer.path_of_module(self)}.layers"
        layers = x.tracer.create_proxy("get_attr", path, (), {})
        names = ("in_channels", "condense_factor", "conv", "dropout", "recompute")
        return mldn_layers(x, layers, {**self._values(), **{name: getattr(self, name) for name in names}})

    def _taps(self, convs: list[Any]) -> Tensor:
        """All sets, packed; kept while they are the same, so that their values are not read in every call."""
        taps = [c._buffers["taps"] for c in convs]
        if tracing.recording():
            return torch.cat(taps)
        known = self._known_taps
        if known is None or any(a is not t or v != t._version for t, (a, v) in zip(taps, known[0], strict=True)):
            self._known_taps = known = ([(t, t._version) for t in taps], torch.cat(taps))
        return known[1]

    def _values(self) -> dict[str, Any]:
        return {
            "num_layers": self.num_layers,
            "paths": self.paths,
            "growth": self.growth,
            "bottleneck": self.bottleneck,
            "groups": self.groups,
            "version": self.version,
            "pairing": self.pairing,
            "kernel_size": self.kernel_size,
        }

    @torch.no_grad()
    def _update(self, norms: tuple[_mldn_pack.Norms, _mldn_pack.Norms, _mldn_pack.Norms], out: Any, x: Tensor) -> None:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        means: list[Tensor] = []
        variances: list[Tensor] = []
        for i, group in enumerate(norms):
            stats = out[1 + i].detach()
            for row, into in ((stats[0], means), (stats[1] * (count / (count - 1)), variances)):
                if i == 0 and self.version == 1:
                    paths = row.view(self.paths, -1).unbind()
                    into += [paths[j % self.paths].narrow(0, 0, n.num_features) for j, n in enumerate(group)]
                elif group:
                    into += row.split([n.num_features for n in group])
        _mldn_pack.update([n for group in norms for n in group], means, variances)

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        """What its modules count for one image, under a convention of :func:`lightkernels.models.count`."""
        params = ops = 0
        pixels = x.shape[2] * x.shape[3]
        for path in self._every():
            for child in (path.reduce, path.reactivate):
                if child is not None:
                    stated = child.stated_count(convention, x, x)
                    params, ops = params + stated[0], ops + stated[1]
            params += sum(p.numel() for m in (path.norm, path.conv) for p in m.parameters())
            activations = 0 if convention == "macs" else path.norm.num_features
            ops += (cast(Tensor, path.conv.weight).numel() + activations) * pixels
        return params, ops

    def condense(self) -> nn.Module:
        """A smaller block of equal output in evaluation, without masks: for each group an index table into its path,
        in which the exchange between paths and the shuffle of the 1x1 are contained.

        What runs as one operator becomes one operator again, and other blocks their layers with condensed children.

        Raises ValueError unless all pruning stages are done.
        """
        paths = list(self._every())
        if _mldn_pack.Parts(self.layers).why_layered() is None:
            values = {**self._values(), "index_groups": self.groups, "condense_factor": self.condense_factor}
            return like(CondensedMLDNBlock(values, paths), self)
        memo: dict[int, Any] = {}
        for path in paths:
            memo[id(path.reduce)] = path.reduce.condense()
            if path.reactivate is not None:
                memo[id(path.reactivate)] = path.reactivate.condense()
        layers = copy.deepcopy(self.layers, memo)
        return like(nn.Sequential(*layers), self)

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, growth={self.growth}, num_layers={self.num_layers}, paths={self.paths}"
        return f"{sizes}, version={self.version}, conv={self.conv!r}, pairing={self.pairing!r}"


def check(op: str, where: str = "", **o: Any) -> None:
    """Everything that a block demands of its arguments; every rule has its own error. ``where`` names the block."""
    for name in ("in_channels", "growth", "num_layers", "paths", "bottleneck", "groups", "condense_factor"):
        _arguments.positive_int(op, name, o[name])
    require(o["version"] in (1, 2), op, "version", "be 1 or 2", o["version"])
    _arguments.one_of(op, "conv", o["conv"], ("standard", "rsdc"))
    _arguments.share(op, "dropout", o["dropout"])
    for name in ("rsdc_bias", "sfr_zero_init"):
        if not isinstance(o[name], bool):
            fail_type(op, name, "be a bool", o[name])
    require(o["version"] == 2 or not o["sfr_zero_init"], op, "sfr_zero_init", "be False in version 1", True)
    if not isinstance(o["recompute"], (bool, type(None))):
        fail_type(op, "recompute", "be a bool or None", o["recompute"])
    window = _arguments.positive_int(op, "k_rsdc", o["k_rsdc"])
    require(window % 2 == 1 and window > 1, op, "k_rsdc", "be odd and at least 3, as nine cells are drawn", window)
    channels, growth, paths, groups = o["in_channels"], o["growth"], o["paths"], o["groups"]
    check_paths(op, channels, growth, paths, o["pairing"])
    kappa = growth // paths
    rule = f"divide what a path adds{where}, growth / paths = {kappa}"
    require(kappa % groups == 0, op, "groups", rule, groups, f"growth must be a multiple of {paths * groups}.")
    for layer in range(o["num_layers"]):
        width = channels // paths + layer * kappa
        rule = f"divide the channels of a path in every layer, {width} in layer {layer}{where}"
        require(width % o["condense_factor"] == 0, op, "condense_factor", rule, o["condense_factor"])
