"""The condensed form of a learned group convolution: contract and public function."""

from __future__ import annotations

import torch
from torch import Tensor

from lightkernels._core import backends
from lightkernels._core.fused import FusedOp
from lightkernels._core.spec import fail_type, require_tensor
from lightkernels.ops.condensed_conv2d import reference
from lightkernels.ops.condensed_conv2d.spec import DIFFERENTIABLE, NAME, Inputs, Outputs, Spec

# What each dtype is computed in.
ACCUMULATED = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}

OP = FusedOp(
    name=NAME,
    package=__package__,
    inputs=Inputs,
    outputs=Outputs,
    differentiable=DIFFERENTIABLE,
    arguments="str activation",
    spec=Spec,
    definition=reference.run,
    restore=lambda spec, y: y,
)


def _prepared(x: object, weight: object, index: object, scale: object, shift: object, activation: object) -> Inputs:
    """Types of the public call; norms in the dtype they are computed in; autocast."""
    given = {"x": x, "weight": weight, "scale": scale, "shift": shift, "index": index}
    for name, one in given.items():
        require_tensor(NAME, name, one)
    t: dict[str, Tensor] = {name: one for name, one in given.items() if isinstance(one, Tensor)}
    kind, dtype = t["x"].device.type, t["x"].dtype
    if dtype not in ACCUMULATED:
        fail_type(NAME, "x", "be float32, float64, bfloat16 or float16", x)
    if t["x"].layout is not torch.strided:
        fail_type(NAME, "x", "be a dense tensor", str(t["x"].layout), "x.to_dense() makes one.")
    autocast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    if t["weight"].dtype != dtype and not autocast:
        fail_type(NAME, "weight", f"have x's dtype {str(dtype).removeprefix('torch.')}", weight)
    if t["index"].dtype is not torch.int64:
        fail_type(NAME, "index", "be int64", index)
    for name in ("scale", "shift"):
        if not t[name].is_floating_point():
            fail_type(NAME, name, "be of a floating dtype", t[name])
    if not isinstance(activation, str):
        fail_type(NAME, "activation", "be a string", activation)
    if autocast and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    acc = ACCUMULATED[dtype]
    return Inputs(t["x"].to(dtype), t["weight"].to(dtype), t["scale"].to(acc), t["shift"].to(acc), t["index"])


def condensed_conv2d(
    x: Tensor,
    weight: Tensor,
    index: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    activation: str = "relu",
    backend: str | None = None,
) -> Tensor:
    r"""Pick channels, scale and shift them, activation, grouped 1x1 convolution, channel shuffle; in one pass.

    With g = o mod G, the group of output o,

    .. math:: y[n,o,i,j] = \sum_k w[o,k]\; \mathrm{relu}(s[g,k]\, x[n, q[g,k], i, j] + b[g,k])

    Equivalent to::

        F.channel_shuffle(F.conv2d(F.relu(x[:, index.flatten()] * scale[:, None, None] + shift[:, None, None]),
            weight.unflatten(0, (-1, len(index))).transpose(0, 1).flatten(0, 1)[:, :, None, None],
            groups=len(index)), len(index))

    Args:
        x: [N, C, H, W], float32, float64, bfloat16 or float16; NCHW or channels_last, kept in the output. Batch and
            channel slices are read in place.
        weight: [C_out, K], of x's dtype; row o belongs to group o mod G, so the shuffle is no operation.
        index: int64 [G, K], the channels q of x that each group reads; the same ones may come more than once.
        scale, shift: [G K], of any floating type: a BatchNorm in evaluation, or any affine map of the picked channels.
        activation: ``"relu"`` or ``"hardswish"``.
        backend: a name of :func:`lightkernels.use_backend`; by default the context's, else the fastest.

    Returns:
        [N, C_out, H, W] in x's dtype and layout. 16-bit types are computed in float32 and rounded once.

    Raises:
        TypeError: an argument of the wrong type or dtype. ValueError: a shape or value that does not fit.
        IndexError: on the CPU, an index that is no channel of x. BackendUnavailable: the backend asked for cannot run
        this call.

    Differentiable in x, weight, scale and shift; second derivatives are those of the definition.

    Source: Huang et al., CondenseNet, Section 3 (learned group convolution at test time).

    Example:
        >>> x, weight, index = torch.randn(2, 16, 5, 5), torch.randn(8, 4), torch.randint(16, (2, 4))
        >>> condensed_conv2d(x, weight, index, torch.ones(8), torch.zeros(8)).shape
        torch.Size([2, 8, 5, 5])
    """
    if backend is not None:
        backends.check_name(backend, NAME)
    try:
        exact = weight.dtype is x.dtype and index.dtype is torch.int64 and x.layout is torch.strided
        exact = exact and scale.dtype is shift.dtype is ACCUMULATED[x.dtype] and type(activation) is str
    except (AttributeError, KeyError):
        exact = False
    if not exact or torch._C._is_any_autocast_enabled():
        t = _prepared(x, weight, index, scale, shift, activation)
    else:
        t = Inputs(x, weight, scale, shift, index)
    y: Tensor = OP(t, (activation,), backend).y
    return y
