"""Batching rules of bilinear operators: a batch of inputs goes into N, a batch of weights into channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightkernels._core.op import BilinearOp

Blocks = Callable[[tuple[Any, ...], int], Sequence[int]]


def _one_block(args: tuple[Any, ...], size: int) -> Sequence[int]:
    return (size,)


def _same_args(batch: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args


class Folding(NamedTuple):
    """How an operator takes a batch of ``B`` weights as ``B`` times the channels.

    ``x``, ``w`` and ``y`` give, from the schema arguments and the number of channels (of the packed weight: the size
    of its first dimension), the sizes of the consecutive blocks that each become ``B`` times as long; by default
    there is one. ``args`` gives the schema arguments of the longer call; all constants among them have the batch as
    one more dimension in front, or none of them has.
    """

    x: Blocks = _one_block
    w: Blocks = _one_block
    y: Blocks = _one_block
    args: Callable[[int, tuple[Any, ...]], tuple[Any, ...]] = _same_args


def _front(t: Tensor, dim: int | None, batch: int) -> Tensor:
    """With the batch first; repeated without a copy if it has none."""
    return t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)


def fronted(batch: int, dims: Sequence[int | None], constants: Sequence[Tensor]) -> list[Tensor]:
    """All with the batch in front, or, where none has one, as they are."""
    if all(dim is None for dim in dims):
        return list(constants)
    return [_front(t, dim, batch) for t, dim in zip(constants, dims, strict=True)]


def _merge(t: Tensor, dim: int | None, batch: int) -> Tensor:
    t = _front(t, dim, batch)
    return t.reshape(batch * t.shape[1], *t.shape[2:])


def _split(t: Tensor, batch: int) -> Tensor:
    return t.reshape(batch, t.shape[0] // batch if batch else 0, *t.shape[1:])


def fold(t: Tensor, blocks: Blocks, args: tuple[Any, ...], dim: int) -> Tensor:
    """[B, ...] with blocks along ``dim`` (counted without B) to [...] with each block B times as long."""
    sizes = list(blocks(args, t.shape[dim + 1]))
    parts = [p.movedim(0, dim).flatten(dim, dim + 1) for p in t.split(sizes, dim + 1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def unfold(t: Tensor, blocks: Blocks, args: tuple[Any, ...], dim: int, batch: int) -> Tensor:
    """The inverse of ``fold``."""
    sizes = list(blocks(args, t.shape[dim] // batch if batch else 0))
    parts = [
        p.unflatten(dim, (batch, size)).movedim(dim, 0)
        for p, size in zip(t.split([batch * size for size in sizes], dim), sizes, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim + 1)


def rule(
    op: BilinearOp[Any],
    suffix: str,
    batch: int,
    dims: tuple[int | None, ...],
    tensors: tuple[Tensor | None, ...],
    args: tuple[Any, ...],
    backend: str | None,
    mixed: bool = False,
) -> Tensor:
    """One call of the primitive for a whole batch; the result's batch dimension is the first.

    Args:
        mixed: the constants in ``args`` have a batch too.
    """
    first, second = tensors[0], tensors[1]
    assert first is not None and second is not None
    if suffix == "":
        return _fwd(op, batch, dims, first, second, tensors[2], args, backend, mixed)
    if suffix == "_bwd_x":
        return _bwd_x(op, batch, dims, first, second, args, backend, mixed)
    folding = op.folding
    g = fold(_front(first, dims[0], batch), folding.y, args, 1)
    x = fold(_front(second, dims[1], batch), folding.x, args, 1)
    return unfold(op.bwd_w(g, x, folding.args(batch, args), backend), folding.w, args, 0, batch)


def _fwd(
    op: BilinearOp[Any],
    batch: int,
    dims: tuple[int | None, ...],
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    args: tuple[Any, ...],
    backend: str | None,
    mixed: bool,
) -> Tensor:
    if not mixed and dims[1] is None and (b is None or dims[2] is None):
        return _split(op.fwd(_merge(x, dims[0], batch), w, b, args, backend), batch)
    folding = op.folding
    y = op.fwd(
        fold(_front(x, dims[0], batch), folding.x, args, 1),
        fold(_front(w, dims[1], batch), folding.w, args, 0),
        None if b is None else fold(_front(b, dims[2], batch), folding.y, args, 0),
        folding.args(batch, args),
        backend,
    )
    return unfold(y, folding.y, args, 1, batch)


def _bwd_x(
    op: BilinearOp[Any],
    batch: int,
    dims: tuple[int | None, ...],
    g: Tensor,
    w: Tensor,
    args: tuple[Any, ...],
    backend: str | None,
    mixed: bool,
) -> Tensor:
    (n, c, *size), last, *rest = args
    values = tuple(rest)
    if not mixed and dims[1] is None:
        return _split(op.bwd_x(_merge(g, dims[0], batch), w, (batch * n, c, *size), last, values, backend), batch)
    folding = op.folding
    gx = op.bwd_x(
        fold(_front(g, dims[0], batch), folding.y, values, 1),
        fold(_front(w, dims[1], batch), folding.w, values, 0),
        (n, batch * c, *size),
        last,
        folding.args(batch, values),
        backend,
    )
    return unfold(gx, folding.x, values, 1, batch)
