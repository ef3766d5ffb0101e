"""rsdc2d on a GPU: the calls of a group, ours and the others, and the truth."""

from __future__ import annotations

import torch

from gpu.device import Device
from gpu.plan import DTYPES, OURS
from gpu.rsdc import TAPS, RsdcGroup
from lightkernels._core import measure
from lightkernels._core.taps import draw
from lightkernels.ops.rsdc2d import baselines


class _Small(RsdcGroup):
    """The same call with sizes for a rehearsal."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (2, 2 * self.window[1], 6, 7, 1)

    @property
    def filters(self) -> int:
        return 2 * self.window[1]


def taps_of(group: RsdcGroup, device: Device) -> torch.Tensor:
    """The same in every call of a process, so that ours and the others compute one function."""
    k, count = group.window
    return draw(count, TAPS, k, generator=torch.Generator().manual_seed(k), device=device.kind)


def tensors(group: RsdcGroup, device: Device) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    group = _Small(group.shape, group.dtype, group.variant, group.kind) if device.dry else group
    n, c, h, w, _ = group.sizes
    where = {"device": device.kind, "dtype": torch.float32}
    dtype = DTYPES[group.dtype]
    x = torch.randn(n, c, h, w, **where).to(dtype)
    weight = torch.randn(group.filters, c // group.window[1], TAPS, **where).to(dtype)
    return x, [weight], torch.randn(n, group.filters, h, w, **where).to(dtype)


def ours(group: RsdcGroup, device: Device) -> list[measure.Entry]:
    k, count = group.window
    taps = taps_of(group, device)
    return [
        entry
        for backend, name in OURS.items()
        for entry in baselines.ours(taps, k, groups=count, backend="reference" if device.dry else backend, name=name)
    ]


def others(group: RsdcGroup, device: Device, compile: bool = False) -> list[measure.Entry]:
    k, count = group.window
    found = baselines.entries(
        taps_of(group, device),
        k,
        groups=count,
        dtype=DTYPES[group.dtype],
        compile=baselines.LAYOUTS if compile else (),
        sixteen="native",
    )
    return found + baselines.three_by_three(count)


def truth(
    group: RsdcGroup, device: Device, x: torch.Tensor, weights: list[torch.Tensor], g: torch.Tensor
) -> list[torch.Tensor]:
    k, count = group.window
    return baselines.truth(x, weights, g, taps_of(group, device), k, group.kind, groups=count)
