"""What this chip does at most, measured: the other figures are fractions of these."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu.device import Device

Record = dict[str, Any]


def _best(device: Device, call: Callable[[], object], times: int = 10) -> float:
    return statistics.median(device.seconds(call) for _ in range(times))


def copy(device: Device) -> float:
    """Bytes a second, read plus written, of a large copy."""
    size = 2**12 if device.dry else 2**31
    a, b = torch.randint(255, (size,), dtype=torch.uint8, device=device.kind), None
    b = torch.empty_like(a)
    return 2 * size / _best(device, lambda: b.copy_(a))


def matmul(device: Device) -> float:
    """Multiply-adds a second, twice, of a bf16 product of random matrices."""
    n = 16 if device.dry else 8192
    a, b = (torch.randn(n, n, device=device.kind).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _best(device, lambda: torch.mm(a, b, out=out))


def cached_read(device: Device) -> float:
    """Bytes a second from the L2 cache."""
    if device.dry:
        return 1.0
    from gpu.ceilings_triton import read_cached

    block, blocks, programs, repeats = 2048, 2**21 // 2048, 132 * 16, 512
    x = torch.randn(block * blocks, device=device.kind)
    out = torch.empty(programs * block, device=device.kind)
    run = read_cached[(programs,)]
    return 4 * block * programs * repeats / _best(device, lambda: run(x, out, blocks, repeats, BLOCK=block))


def multiply_adds(device: Device) -> float:
    """Float32 operations a second of the ordinary units, two a multiply-add."""
    if device.dry:
        return 1.0
    from gpu.ceilings_triton import multiply_add

    block, programs, repeats = 512, 132 * 64, 1000
    out = torch.empty(programs * block, device=device.kind)
    run = multiply_add[(programs,)]
    return 2 * 16 * repeats * block * programs / _best(device, lambda: run(out, repeats, BLOCK=block))


def node_gap(device: Device) -> float:
    """Seconds a node of a graph takes that has nothing to do."""
    if device.dry:
        return 1e-6
    one = torch.zeros(1, device=device.kind)
    replay = device.capture(lambda: lambda: one.add_(1), 2**40)
    many = device.capture(lambda: lambda: [one.add_(1) for _ in range(100)], 2**40)
    few, lots = (statistics.median(r.run() for _ in range(20)) for r in (replay, many))
    return (lots - few) / 99


CEILINGS: dict[str, tuple[str, Callable[[Device], float]]] = {
    "copy": ("B/s", copy),
    "bf16 matmul": ("FLOP/s", matmul),
    "fp32 multiply-add": ("FLOP/s", multiply_adds),
    "L2 read": ("B/s", cached_read),
    "graph node": ("s", node_gap),
}


def records(device: Device) -> Iterator[Record]:
    for name, (unit, function) in CEILINGS.items():
        record: Record = {"part": "ceilings", "key": name, "unit": unit}
        try:
            record["value"] = function(device)
        except Exception as reason:
            record["refused"] = f"{type(reason).__name__}: {reason}".splitlines()[0][:300]
        device.free()
        yield record
