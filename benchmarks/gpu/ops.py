"""Times one group: ours in both layouts and every baseline, checked against float64 first, in turn, in CUDA graphs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from gpu import mldn, mldn_ops, plan, rsdc, rsdc_ops
from gpu.device import Device, take_turns
from gpu.plan import DTYPES, OURS, Group, shrunk
from lightkernels._core import measure
from lightkernels.ops.multi_dwconv2d import baselines
from lightkernels.testing import poisoned

Record = dict[str, Any]
LARGE = 2e9
FIRST = 20  # groups of multi_dwconv2d before those of the other operators
ESSENTIAL = ("eager", "grouped", "merged", "masked", "3x3")
UNCHECKED = ("3x3",)  # another function of the same price
# cuDNN computes float32 in TF32 unless it is told not to; users leave it on, so the baselines may too.
TF32_TOLERANCE = 2e-3


def all_groups() -> Iterator[Group]:
    """Of all operators, the most telling first."""
    head, rest = itertools.tee(plan.groups())
    more = (rsdc.groups(), mldn.groups())
    return itertools.chain(itertools.islice(head, FIRST), *more, itertools.islice(rest, FIRST, None))


def family(group: Group) -> Any:
    """The module of an operator that has one of its own."""
    if isinstance(group, (mldn.BlockGroup, mldn.CondensedGroup)):
        return mldn_ops
    return rsdc_ops if isinstance(group, rsdc.RsdcGroup) else None


def tensors(group: Group, device: Device) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Fresh random x, weights and output gradient."""
    if family(group):
        return family(group).tensors(group, device)  # type: ignore[no-any-return]
    n, c, h, w, s = shrunk(group) if device.dry else group.sizes
    dtype = DTYPES[group.dtype]
    branches = len(group.kernels) if group.combine == "concat" else 1
    where = {"device": device.kind, "dtype": torch.float32}
    x = torch.randn(n, c, h, w, **where).to(dtype)
    weights = [torch.randn(c, 1, k, k, **where).to(dtype) for k in group.kernels]
    return x, weights, torch.randn(n, c * branches, -(-h // s), -(-w // s), **where).to(dtype)


def ours(group: Group, device: Device) -> list[measure.Entry]:
    if family(group):
        return family(group).ours(group, device)  # type: ignore[no-any-return]
    found = []
    for backend, name in OURS.items():
        backend = "reference" if device.dry else backend
        found += baselines.ours(group.combine, backend, group.sizes[4], name)
    return found


def others(group: Group, device: Device, compile: bool = False) -> list[measure.Entry]:
    if family(group):
        return family(group).others(group, device, compile)  # type: ignore[no-any-return]
    return measure.baselines(
        "multi_dwconv2d",
        kernel_sizes=group.kernels,
        combine=group.combine,
        dtype=DTYPES[group.dtype],
        sixteen="native",
        stride=group.sizes[4],
        compile=baselines.LAYOUTS if compile else (),
    )


def truth(
    group: Group, device: Device, x: torch.Tensor, weights: list[torch.Tensor], g: torch.Tensor
) -> list[torch.Tensor]:
    if family(group):
        return family(group).truth(group, device, x, weights, g)  # type: ignore[no-any-return]
    return baselines.truth(x, weights, g, group.combine, group.kind, group.sizes[4])


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def candidates(group: Group, device: Device, compile: bool) -> list[tuple[str, measure.Entry, bool]]:
    """Label, entry, and whether cuDNN may search; it searches for every baseline once and not once."""
    found = [(e.label, e, False) for e in ours(group, device)]
    if compile:
        return found + [(e.label, e, True) for e in others(group, device, True) if e.name.startswith("compiled")]
    found += [(e.label, e, False) for e in others(group, device)]
    large = group.bytes() > LARGE  # all candidates' buffers are held at once
    found += [
        (f"{e.name} searched {e.layout}", e, True) for e in others(group, device) if not large or e.name in ESSENTIAL
    ]
    return found


def measure_group(group: Group, device: Device, compile: bool = False, limit: float = 0.1) -> Record:
    """One record; a candidate that is wrong or fails is named in it with the reason, ours too."""
    with device.on():
        return _measure(group, device, compile, limit)


def _measure(group: Group, device: Device, compile: bool, limit: float) -> Record:
    torch.manual_seed(group_seed(group))
    x, weights, g = tensors(group, device)
    right = truth(group, device, x, weights, g)
    replays, errors, refused, peaks = {}, {}, {}, {}
    slowest = float("inf")
    for label, entry, search in candidates(group, device, compile):
        with cudnn_benchmark(search):
            try:
                call = entry.call(group.kind, x, weights, g)
                with poisoned() if entry.ours else contextlib.nullcontext():
                    outputs = call()
                tf32 = group.dtype == "fp32" and (not entry.ours or family(group) is not None)
                if entry.name not in UNCHECKED:
                    results = entry.results(group.kind, outputs)
                    tolerance = getattr(group, "tolerance", None) or (TF32_TOLERANCE if tf32 else None)
                    errors[label] = measure.check(label, results, right, tolerance)
                    del results
                del outputs
                estimate = device.seconds(call)
                if estimate > slowest:
                    refused[label] = f"hopeless: {estimate * 1e3:.3g} ms"
                    continue
                if entry.ours:
                    slowest = max(8 * estimate, 1e-3)
                if entry.ours or entry.name in ("eager", "masked"):
                    peaks[label] = device.peak_bytes(call)
                del call
                replays[label] = device.capture(lambda e=entry: e.call(group.kind, x, weights, g), group.bytes())
            except Exception as reason:
                refused[label] = f"{type(reason).__name__}: {reason}".splitlines()[0][:300]
                device.free()
    take_turns(replays, limit=limit)
    record = {
        "part": "compile" if compile else "ops",
        "key": group.key,
        "shape": group.shape,
        "dtype": group.dtype,
        "variant": group.variant,
        "kind": group.kind,
        "bytes": group.bytes(),
        "flops": group.flops(),
        "times": {label: replay.summary() for label, replay in replays.items()},
        "errors": {label: float(f"{error:.3g}") for label, error in errors.items()},
        "refused": refused,
        "peaks": peaks,
    }
    replays.clear()
    device.free()
    return record


def group_seed(group: Group) -> int:
    """A new seed a process, the same for one group within it."""
    return (torch.initial_seed() + sum(map(ord, group.key))) % 2**31


def warm(group: Group, device: Device) -> None:
    """Compiles what the group's calls of ours need, into the compiler's cache on disk."""
    x, weights, g = tensors(group, device)
    for entry in ours(group, device):
        entry.call(group.kind, x, weights, g)()
    device.free()
