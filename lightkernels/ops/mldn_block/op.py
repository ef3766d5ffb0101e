"""A whole dense block of several paths: contract and public function."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from lightkernels._core import backends
from lightkernels._core.fused import FusedOp
from lightkernels._core.pairing import Pairing
from lightkernels._core.spec import fail_type, message, require_tensor
from lightkernels._core.taps import check_form, check_once
from lightkernels.ops.mldn_block import reference
from lightkernels.ops.mldn_block.spec import DIFFERENTIABLE, NAME, Inputs, Outputs, Spec

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WEIGHTS = ("weight1", "weight3", "bias3", "weight_sfr")
NORMS = ("affine1", "affine2", "affine3", "running1", "running2", "running3")

OP = FusedOp(
    name=NAME,
    package=__package__,
    inputs=Inputs,
    outputs=Outputs,
    differentiable=DIFFERENTIABLE,
    arguments="int num_layers, int paths, int growth, int bottleneck, int groups, int version, str pairing, "
    "int kernel_size, float eps, float dropout, int index_groups, int condense_factor, bool keep",
    spec=Spec,
    definition=reference.run,
    restore=reference.restore,
)


def inputs(**tensors: Tensor | None) -> Inputs:
    """Types of the public call's tensors; norms in the dtype they are computed in; autocast."""
    x = tensors["x"]
    require_tensor(NAME, "x", x)
    assert isinstance(x, Tensor)
    if x.dtype not in DTYPES:
        fail_type(NAME, "x", "be float32, float64, bfloat16 or float16", x)
    if x.layout is not torch.strided:
        fail_type(NAME, "x", "be a dense tensor", str(x.layout), "x.to_dense() makes one.")
    kind, dtype = x.device.type, x.dtype
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    accumulate = torch.float64 if dtype is torch.float64 else torch.float32
    found: dict[str, Tensor | None] = {"x": x.to(dtype)}
    for name in Inputs._fields[1:]:
        t = tensors.get(name)
        if t is None and name in Inputs._field_defaults:
            continue
        require_tensor(NAME, name, t)
        assert isinstance(t, Tensor)
        if t.device != x.device:
            raise ValueError(message(NAME, name, f"be on x's device {x.device}", t))
        if name in WEIGHTS:
            if dtype is x.dtype and t.dtype is not dtype:
                fail_type(NAME, name, f"have x's dtype {str(x.dtype).removeprefix('torch.')}", t)
            t = t.to(dtype)
        elif name in NORMS:
            if not t.is_floating_point():
                fail_type(NAME, name, "be of a floating dtype", t)
            t = t.to(accumulate)
        elif t.dtype is not torch.int64:
            fail_type(NAME, name, "be int64", t)
        found[name] = t.contiguous()
    return Inputs(**found)


def _value(name: str, value: object, kinds: tuple[type, ...]) -> Any:
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if wrong:
        fail_type(NAME, name, f"be of type {' or '.join(kind.__name__ for kind in kinds)}", value)
    return value


VALUES = (
    *("num_layers", "paths", "growth", "bottleneck", "groups", "version", "pairing", "kernel_size"),
    *("eps", "dropout", "index_groups", "condense_factor", "keep"),
)
_KINDS: dict[str, tuple[type, ...]] = {
    "pairing": (str,),
    "keep": (bool,),
    "eps": (float, int),
    "dropout": (float, int),
}


def values(**given: Any) -> dict[str, Any]:
    """The values with their types checked, in the order of the schema."""
    checked = {name: _value(name, given[name], _KINDS.get(name, (int,))) for name in VALUES}
    return {name: float(v) if name in ("eps", "dropout") else v for name, v in checked.items()}


def mldn_block(
    x: Tensor,
    weight1: Tensor,
    weight3: Tensor,
    affine1: Tensor,
    affine2: Tensor,
    bias3: Tensor | None = None,
    weight_sfr: Tensor | None = None,
    affine3: Tensor | None = None,
    *,
    num_layers: int,
    paths: int,
    growth: int,
    bottleneck: int = 4,
    groups: int = 4,
    version: int = 1,
    pairing: Pairing = "xor1",
    kernel_size: int = 3,
    taps: Tensor | None = None,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    running1: Tensor | None = None,
    running2: Tensor | None = None,
    running3: Tensor | None = None,
    index: Tensor | None = None,
    index_sfr: Tensor | None = None,
    index_groups: int = 0,
    condense_factor: int = 1,
    recompute: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""A multi-path dense block: every layer's paths in one call, new channels appended to one buffer.

    With P paths of c_l = C / P + l kappa channels, kappa = growth / P, m = bottleneck kappa, and q(p) the partner of
    path p, each layer l = 0, 1, ... computes for all paths

    .. math:: h_p = W_3 * \mathrm{relu}(BN_2(W_1\,\mathrm{relu}(BN_1(x_p)))), \qquad x_p \leftarrow [x_p \mid h_{q(p)}]

    and version 2 adds :math:`W_{sfr}\,\mathrm{relu}(BN_3(h_p))` to x_p before it appends. ``*`` has ``groups`` groups.
    :class:`lightkernels.nn.MLDNBlock` packs its parameters and keeps running statistics; this is the bare function.

    Equivalent to::

        lightkernels.mldn_block(x, weight1, weight3, affine1, affine2, num_layers=num_layers, paths=paths,
            growth=growth, groups=groups, backend="reference")

    Args:
        x: [N, C, H, W], float32, float64, bfloat16 or float16; NCHW or channels_last, kept in the output.
        weight1: 1-D, a block [m, c_l] for each layer and path, in this order; x's dtype. Masks are applied before.
        weight3: 1-D, [L, P, kappa, m / groups, T]: the cells of the window in order, or those of ``taps``.
        affine1, affine2: [2, P sum c_l] and [2, L P m]: gamma and beta of the norms, by layer and path. Computed with
            in float64 for a float64 x, else in float32, whatever they come in; autocast leaves them alone.
        bias3: [L P kappa] or None.
        weight_sfr, affine3: version 2: 1-D, a block [c_l, kappa] for each layer and path, and [2, L P kappa].
        num_layers, paths, growth, bottleneck, groups: L, P (1 or even), k, m / kappa, and the groups of a path's 3x3.
        pairing: the partner: ``"xor1"`` p ^ 1 (the paper's), ``"butterfly"`` p ^ 2^(l mod log2 P), or ``"rotate"``
            p + 1 + l mod (P - 1), mod P.
        kernel_size, taps: the window, odd; int64 [L P S, T] cells y * kernel_size + x with S in {1, groups, kappa}.
        eps: of all norms. dropout: probability, before each 1x1; ``seed``, int64 [], is then needed, and the mask is
            a hash of the seed, the channel and the pixel: equal on every backend and in every layout.
        running1, running2, running3: [2, ...] mean and variance as the affine ones; None for batch statistics.
        index, index_groups, condense_factor: the condensed form, with running statistics: int64, a block
            [G1, c_l / C] of channels of the path; affine1 follows it, and row o of weight1, [m, c_l / C], reads
            group o mod G1. index_sfr: version 2's, of the same shape: the new channels i with i mod G1 = g are
            added to its channels, by weight_sfr's rows [G1 c_l / C, kappa / G1].
        recompute: the backward computes the 1x1 again, and less is kept for it. None: where that takes no longer.
        backend: a name of :func:`lightkernels.use_backend`; by default the context's, else the fastest.

    Returns:
        [N, C + L growth, H, W] in x's dtype and layout: the paths one after another, each x's part and what it
        received. What is kept for a backward: this output, the statistics, and the 1x1's outputs unless recomputed.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: a shape or value that does not fit.
        BackendUnavailable: the backend asked for cannot run this call.

    Source: Park and Chang, Sensors 2021, 21, 7862, Algorithms 1 and 2.

    Example:
        >>> x, w1, w3 = torch.randn(2, 4, 8, 8), torch.randn(2 * 4 * (2 + 3)), torch.randn(2 * 2 * 4 * 9)
        >>> norms = [torch.ones(2, n) for n in (2 * (2 + 3), 2 * 2 * 4)]
        >>> mldn_block(x, w1, w3, *norms, num_layers=2, paths=2, growth=2, groups=1).shape
        torch.Size([2, 8, 8, 8])
    """
    given = dict(locals())
    return mldn_block_outputs(given.pop("backend"), **given).y


def recomputes(x: Tensor, version: int, num_layers: int, paths: int, growth: int) -> bool:
    """Where computing the 1x1 twice was measured to take no longer than keeping its results: few channels, many pixels.

    Compiled calls keep it, as the answer would bind their sizes.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dim() != 4 or version != 1:
        return False
    n, channels, height, width = x.shape
    return channels + num_layers * growth <= 24 * paths and n * height * width >= 2**15


def prepare(
    *args: Tensor, recompute: bool | None = None, backend: str | None = None, **given: Any
) -> tuple[Inputs, tuple[Any, ...]]:
    """The public call's arguments as the operator's inputs and values."""
    given = {**DEFAULTS, **dict(zip(Inputs._fields, args, strict=False)), **given}
    t = inputs(**{name: given.pop(name, None) for name in Inputs._fields})
    if recompute is not None:
        _value("recompute", recompute, (bool,))
    wanted = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in t)
    schema = values(**given, keep=wanted and not recompute and not torch.compiler.is_exporting())
    if schema["keep"] and recompute is None:
        form = (schema[name] for name in ("version", "num_layers", "paths", "growth"))
        schema["keep"] = not recomputes(t.x, *form)
    return t, tuple(schema.values())


def mldn_block_outputs(backend: str | None = None, **given: Any) -> Outputs:
    """``mldn_block`` by keywords, with its statistics."""
    if backend is not None:
        backends.check_name(backend, NAME)
    t, schema = prepare(**given)
    if t.taps is not None:
        check_form(NAME, t.taps)
        if not torch.compiler.is_compiling():
            check_once(NAME, t.taps, schema[VALUES.index("kernel_size")])
    kind = t.x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return OP(t, schema, backend)  # type: ignore[no-any-return]
    return OP(t, schema, backend)  # type: ignore[no-any-return]


_PARAMETERS = inspect.signature(mldn_block).parameters
DEFAULTS = {
    name: p.default
    for name, p in _PARAMETERS.items()
    if p.default is not p.empty and name not in (*Inputs._fields, "recompute", "backend")
}
