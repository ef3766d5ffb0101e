"""Layers as they are after condensation: no masks, only what is left of the weights, and where it belongs."""

from __future__ import annotations

import copy
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightkernels._core.spec import fail_type, require
from lightkernels.functional import condensed_conv2d
from lightkernels.nn import _arguments

Act = Literal["relu", "hardswish"]
M = TypeVar("M", bound=nn.Module)
ACTIVATIONS = {"relu": F.relu, "hardswish": F.hardswish}


class Condensable(nn.Module):
    """A module that has a smaller form of equal output."""

    def condense(self) -> nn.Module:
        raise NotImplementedError


def like(new: M, old: nn.Module) -> M:
    """``new`` in the mode of ``old``, frozen where every parameter of ``old`` is."""
    if not any(p.requires_grad for p in old.parameters()):
        new.requires_grad_(False)
    new.train(old.training)
    return new


def picked_norm(norm: nn.Module, index: Tensor) -> nn.BatchNorm2d:
    """A new BatchNorm of the channels ``index`` of ``norm``; a channel may come more than once."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        fail_type("condense", "norm", "be a BatchNorm", norm, "other norms do not act on each channel alone.")
    where = next((t for t in (norm.weight, norm.running_mean) if t is not None), index)
    made = nn.BatchNorm2d(
        len(index),
        norm.eps,
        norm.momentum,
        norm.affine,
        norm.track_running_stats,
        device=where.device,
        dtype=where.dtype if where.is_floating_point() else None,
    )
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            old, new = getattr(norm, name), getattr(made, name)
            if old is not None and new is not None:
                new.copy_(old[index])
        if norm.num_batches_tracked is not None and made.num_batches_tracked is not None:
            made.num_batches_tracked.copy_(norm.num_batches_tracked)
    return made


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm by its running statistics, in float32 at least."""
    mean, var, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
    assert mean is not None and var is not None
    if var.dtype in (torch.bfloat16, torch.float16):
        mean, var = mean.float(), var.float()
    scale = (var + norm.eps).rsqrt()
    if weight is None:
        return scale, -mean * scale
    scale = scale * weight
    return scale, torch.addcmul(bias, mean, scale, value=-1)


class CondensedConv2d(nn.Module):
    """Pick channels, BatchNorm, activation, grouped 1x1 convolution, channel shuffle: a learned group convolution
    after its last pruning stage.

    Shapes: input ``[N, in_channels, H, W]``, output ``[N, out_channels, H, W]``. Output o belongs to group
    ``o % groups``, so the shuffle is no operation.

    With fixed statistics (evaluation, or a norm in evaluation mode) it is one call of
    :func:`lightkernels.condensed_conv2d`; with statistics of the batch, or dropout, PyTorch's operators run.

    Child: ``norm``, a BatchNorm of the ``groups * kept`` picked channels. Parameter: ``weight`` ``[out_channels,
    kept]``. Buffer: ``index`` int64 ``[groups, kept]``, the channels that each group reads.

    Equivalent to: ``F.conv2d(F.relu(layer.norm(x[:, layer.index.flatten()])), w, groups=groups)`` with the rows of
    ``layer.weight`` in the order of their groups and the channels of the output shuffled back

    >>> import torch, lightkernels as lk
    >>> layer = lk.nn.CondensedConv2d(16, 8, groups=4, kept=4)
    >>> layer(torch.randn(2, 16, 5, 5)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([2, 8, 5, 5]), 64)
    """

    index: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        kept: int,
        dropout: float = 0.0,
        activation: Act = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.in_channels = _arguments.positive_int(op, "in_channels", in_channels)
        self.out_channels = _arguments.positive_int(op, "out_channels", out_channels)
        self.groups = _arguments.positive_int(op, "groups", groups)
        _arguments.positive_int(op, "kept", kept)
        require(out_channels % groups == 0, op, "groups", f"divide out_channels, {out_channels}", groups)
        require(kept <= in_channels, op, "kept", f"be at most in_channels, {in_channels}", kept)
        _arguments.one_of(op, "activation", activation, ACTIVATIONS)
        self.dropout, self.activation = dropout, activation
        self.norm = nn.BatchNorm2d(groups * kept, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(out_channels, kept, device=device, dtype=dtype))
        index = torch.arange(groups * kept, device=device).remainder(in_channels)
        self.register_buffer("index", index.view(groups, kept))
        nn.init.normal_(self.weight, std=(2 / out_channels) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        fixed = type(norm) is nn.BatchNorm2d and not norm.training and norm.running_var is not None
        if fixed and not (self.dropout and self.training):
            scale, shift = _affine(norm)
            return condensed_conv2d(x, self.weight, self.index, scale, shift, activation=self.activation)
        x = ACTIVATIONS[self.activation](norm(x.index_select(1, self.index.flatten())))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        groups, kept = self.index.shape
        weight = self.weight.view(-1, groups, kept).transpose(0, 1).reshape(-1, kept, 1, 1)
        return F.channel_shuffle(F.conv2d(x, weight, groups=groups), groups)

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        pixels = y.shape[2] * y.shape[3]
        activations = 0 if convention == "macs" else self.index.numel() * pixels
        return sum(p.numel() for p in self.parameters()), self.weight.numel() * pixels + activations

    def extra_repr(self) -> str:
        groups, kept = self.index.shape
        return f"{self.in_channels}, {self.out_channels}, groups={groups}, kept={kept}"


class CondensedReactivation(nn.Module):
    """BatchNorm, activation, grouped 1x1 convolution, and its channels added to where they belong: sparse feature
    reactivation after its last pruning stage.

    Shapes: input h ``[N, in_channels, H, W]`` and optionally x ``[N, out_channels, H, W]``, which the result is added
    to; output ``[N, out_channels, H, W]``. Input i belongs to group ``i % groups``. Output channels that several groups
    reach get the sum, those that none reaches get nothing. It is one convolution whose weight, zeros where no group
    reaches, is made in every call: channels added one by one take longer in channels_last and have no order on CUDA.

    Child: ``norm``. Parameter: ``weight`` ``[groups * kept, in_channels / groups]``. Buffer: ``index`` int64
    ``[groups, kept]``, the output channels that each group writes.

    Equivalent to: ``x + zeros.index_add(1, layer.index.flatten(), conv(F.relu(layer.norm(h))))``

    >>> import torch, lightkernels as lk
    >>> layer = lk.nn.CondensedReactivation(8, 16, groups=4, kept=4)
    >>> layer(torch.randn(2, 8, 5, 5), torch.randn(2, 16, 5, 5)).shape, layer.weight.shape
    (torch.Size([2, 16, 5, 5]), torch.Size([16, 2]))
    """

    index: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        kept: int,
        activation: Act = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.in_channels = _arguments.positive_int(op, "in_channels", in_channels)
        self.out_channels = _arguments.positive_int(op, "out_channels", out_channels)
        self.groups = _arguments.positive_int(op, "groups", groups)
        _arguments.positive_int(op, "kept", kept)
        require(in_channels % groups == 0, op, "groups", f"divide in_channels, {in_channels}", groups)
        require(kept <= out_channels, op, "kept", f"be at most out_channels, {out_channels}", kept)
        _arguments.one_of(op, "activation", activation, ACTIVATIONS)
        self.activation = activation
        self.norm = nn.BatchNorm2d(in_channels, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(groups * kept, in_channels // groups, device=device, dtype=dtype))
        index = torch.arange(groups * kept, device=device).remainder(out_channels)
        self.register_buffer("index", index.view(groups, kept))
        nn.init.normal_(self.weight, std=(2 / out_channels) ** 0.5)

    def forward(self, h: Tensor, x: Tensor | None = None) -> Tensor:
        r = F.conv2d(ACTIVATIONS[self.activation](self.norm(h)), self.full_weight()[:, :, None, None])
        return r if x is None else x + r

    def full_weight(self) -> Tensor:
        """[out_channels, in_channels], differentiable: zero where a group does not reach."""
        groups, each = self.groups, self.in_channels // self.groups
        rows = self.index * groups + torch.arange(groups, device=self.index.device)[:, None]
        full = self.weight.new_zeros(self.out_channels * groups, each).index_add(0, rows.flatten(), self.weight)
        return full.view(-1, groups, each).transpose(1, 2).flatten(1)

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        pixels = y.shape[2] * y.shape[3]
        activations = 0 if convention == "macs" else self.in_channels * pixels
        return sum(p.numel() for p in self.parameters()), self.weight.numel() * pixels + activations

    def extra_repr(self) -> str:
        groups, kept = self.index.shape
        return f"{self.in_channels}, {self.out_channels}, groups={groups}, kept={kept}"


class CondensedLinear(nn.Module):
    """A linear layer of some of its inputs.

    Shapes: input ``[N, in_features]``, output ``[N, out_features]``. Parameters: ``weight`` ``[out_features, kept]``,
    ``bias`` ``[out_features]`` or None. Buffer: ``index`` int64 ``[kept]``, ascending.
    """

    index: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        """Half of the inputs of ``linear``, those whose columns have the largest sums of absolute values."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            order = linear.weight.abs().sum(0).argsort(dim=0, descending=True, stable=True)
            index = order[: linear.in_features // 2].sort().values
            self.weight = nn.Parameter(linear.weight[:, index].clone())
            bias = None if linear.bias is None else nn.Parameter(linear.bias.clone())
        self.register_parameter("bias", bias)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.index_select(-1, self.index), self.weight, self.bias)

    def stated_count(self, convention: str, x: Tensor, y: Tensor) -> tuple[int, int]:
        params = sum(p.numel() for p in self.parameters())
        return params, self.weight.numel() if convention == "macs" else params

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, kept={len(self.index)}"


def condense(model: nn.Module, *, classifier: str | None = None) -> nn.Module:
    """A copy of ``model`` for inference, with every learned group convolution, sparse feature reactivation and dense
    block in its condensed form; the model itself is left as it is.

    Args:
        model: any module whose learned groups have passed all pruning stages.
        classifier: the name of an ``nn.Linear`` in it that keeps only the half of its inputs with the largest column
            sums of absolute weights, as the published CondenseNet conversion does. Nothing is trained afterwards, so
            outputs change; None leaves it whole, and outputs stay what they were.

    Returns:
        A new model of equal output in evaluation mode, with a smaller state dict. It shares no tensor with ``model``.

    Raises:
        TypeError: for a model that is no module, or a classifier that is no ``nn.Linear``. ValueError: for a layer with
        stages left; AttributeError: for a name that is not there.

    Equivalent to: ``copy.deepcopy(model)`` with ``layer.condense()`` in the place of each such layer

    >>> import torch, lightkernels as lk
    >>> model = torch.nn.Sequential(lk.nn.LearnedGroupConv2d(16, 8), torch.nn.ReLU())
    >>> _ = lk.nn.set_condensation_progress(model, 1.0)
    >>> small, x = lk.nn.condense(model.eval()), torch.randn(2, 16, 5, 5)
    >>> type(small[0]).__name__, torch.allclose(small(x), model(x), atol=1e-5)
    ('CondensedConv2d', True)

    Source: Huang et al., CondenseNet, Section 3 (learned group convolution at test time).
    """
    if not isinstance(model, nn.Module):
        fail_type("condense", "model", "be an nn.Module", model)
    new: dict[int, nn.Module] = {}
    if classifier is not None:
        linear = model.get_submodule(classifier)
        if not isinstance(linear, nn.Linear):
            fail_type("condense", "classifier", "name an nn.Linear", linear)
        new[id(linear)] = like(CondensedLinear(linear), linear)
    _collect(model, new)
    # What is in the memo counts as copied: large masked weights are never copied themselves.
    return copy.deepcopy(model, dict(new))


def _collect(module: nn.Module, new: dict[int, nn.Module]) -> None:
    if id(module) in new:
        return
    if isinstance(module, Condensable):
        new[id(module)] = module.condense()
        return
    for child in module.children():
        _collect(child, new)
