"""What a call costs when there is nothing to compute, and how much memory one takes beyond its outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import lightkernels
from cpu.common import Record, Settings, Target, times, value
from lightkernels._core import measure

OVERHEAD = (
    Target("no_grad", "no grad, of F.conv2d's", 0.15, 0.3, less=True),
    Target("grad", "forward with grad", 0.3, 0.45, less=True),
    Target("step", "forward + backward", 0.4, 0.55, less=True),
)
MEMORY = (Target("memory", "a thread", 1, 4, less=True, unit=" MiB"),)
SMALL = (1, 4, 8, 8)


def _forwards() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {
        "lightkernels": lambda x, w: lightkernels.multi_dwconv2d(x, [w]),
        "F.conv2d": lambda x, w: F.conv2d(x, w, padding=1, groups=4),
    }


def overhead_calls(kind: str) -> dict[str, Callable[[], object]]:
    """One 3x3 depthwise convolution of 1x4x8x8 in both layouts: ``no_grad``, ``grad`` (forward) or ``step``."""
    calls: dict[str, Callable[[], object]] = {}
    torch.manual_seed(0)
    image, weight = torch.randn(SMALL), torch.randn(4, 1, 3, 3)
    for layout, fmt in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        for name, forward in _forwards().items():
            x = image.clone(memory_format=fmt).requires_grad_(kind != "no_grad")
            w = weight.clone(memory_format=fmt).requires_grad_(kind != "no_grad")
            g = torch.ones_like(x)

            def no_grad(f=forward, x=x, w=w):
                with torch.no_grad():
                    return f(x, w)

            def grad(f=forward, x=x, w=w):
                return f(x, w)

            def step(f=forward, x=x, w=w, g=g):
                return torch.autograd.grad(f(x, w), (x, w), g)

            calls[f"{name} {layout}"] = {"no_grad": no_grad, "grad": grad, "step": step}[kind]
    return calls


def overhead(settings: Settings) -> Iterator[Record]:
    for target in OVERHEAD:
        calls = overhead_calls(target.key)
        want = calls["F.conv2d nchw"]()
        for name, call in calls.items():
            out = call()
            pairs = [(out, want)] if isinstance(out, Tensor) else list(zip(out, want, strict=True))
            for one, other in pairs:
                measure.check(name, [one.detach()], [other.detach()])
        timings = measure.interleaved(calls, rounds=4 * settings.rounds, min_time=settings.min_time / 2)
        values = []
        for layout in ("nchw", "nhwc"):
            figures = []
            for stat in ("min", "median"):
                theirs = min(getattr(timings[f"F.conv2d {other}"], stat) for other in ("nchw", "nhwc"))
                figures.append(getattr(timings[f"lightkernels {layout}"], stat) / theirs)
            values.append(value(target.key, layout, *figures, "F.conv2d in its better layout"))
        x, w = torch.randn(SMALL), torch.randn(4, 1, 3, 3)
        yield {
            "shape": "1x4x8x8",
            "dtype": "float32",
            "kind": target.key,
            "backends": {"nchw": str(lightkernels.explain("multi_dwconv2d", x, [w]).chosen)},
            "times": {name: times(t) for name, t in timings.items()},
            "errors": {},
            "refused": {},
            "values": values,
        }


def memory(settings: Settings) -> Iterator[Record]:
    """The high-water mark of a fresh process during one call, less what the call returned; Linux only."""
    probe = Path(__file__).with_name("memory_probe.py")
    shapes = settings.shapes or ("64x32x32x32", "8x96x56x56", "32x384x14x14")
    threads = str(torch.get_num_threads())
    for shape in shapes:
        run = subprocess.run([sys.executable, str(probe), shape, threads], capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"memory probe failed: {run.stderr.strip().splitlines()[-1:]}")
        for found in json.loads(run.stdout):
            figure = max(0, found["extra"]) / 2**20 / int(threads)
            yield {
                "shape": shape,
                "dtype": found["dtype"],
                "kind": found["kind"],
                "backends": {found["layout"]: found["backend"]},
                "times": {},
                "errors": {},
                "refused": {},
                "values": [value("memory", found["layout"], figure, figure, f"{found['dtype']} {found['kind']}")],
            }
