"""``memory_probe.py SHAPE THREADS``: bytes of memory that a call takes beyond its outputs, as JSON.

Every call runs in a fork of one process that has not started its threads yet: a kernel's scratch memory stays with
its thread, so a second call of the same process would show nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import find_package

find_package()

import lightkernels  # noqa: E402
from lightkernels.ops.multi_dwconv2d import baselines  # noqa: E402

KERNELS = (3, 5, 7)


def status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def touch_code() -> None:
    """Map the native core's pages now, or the first call would be charged for them."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/_C." in line and " r" in line:
            start, stop = (int(a, 16) for a in line.split()[0].split("-"))
            ctypes.string_at(start, stop - start)


def extra(shape: tuple[int, ...], threads: int, layout: str, dtype: torch.dtype, kind: str) -> int:
    torch.manual_seed(0)
    n, c, h, w = shape
    entry = next(e for e in baselines.ours() if e.layout == layout)
    x, g = torch.randn(shape).to(dtype), torch.randn(n, c * len(KERNELS), h, w).to(dtype)
    weights = [torch.randn(c, 1, k, k).to(dtype) for k in KERNELS]
    call = entry.call(kind, x, weights, g)
    torch.set_num_threads(threads)
    torch.ones(2**22).add_(1)  # starts the threads
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    entry.call(
        kind, one, [one] * len(KERNELS), one.expand(1, len(KERNELS), 1, 1)
    )()  # loads the Python side; its scratch memory is next to nothing
    touch_code()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    outputs = call()
    return status("VmHWM") - before - sum(t.numel() * t.element_size() for t in outputs)


def forked(*args: object) -> int:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(extra(*args)).encode())  # type: ignore[arg-type]
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError(f"the call failed: {args}")
    return int(text)


def main() -> None:
    shape, threads = tuple(int(s) for s in sys.argv[1].split("x")), int(sys.argv[2])
    torch.set_num_threads(1)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for layout in baselines.LAYOUTS:
            fmt = torch.channels_last if layout == "nhwc" else torch.contiguous_format
            x = torch.empty(shape, dtype=dtype).contiguous(memory_format=fmt)
            weights = [torch.empty(shape[1], 1, k, k, dtype=dtype) for k in KERNELS]
            backend = str(lightkernels.explain("multi_dwconv2d", x, weights).chosen)
            for kind in ("forward", "grad_x", "grad_w"):
                runs = [forked(shape, threads, layout, dtype, kind) for _ in range(3)]
                found.append(
                    {
                        "layout": layout,
                        "dtype": str(dtype).removeprefix("torch."),
                        "kind": kind,
                        "extra": sorted(runs)[1],
                        "backend": backend,
                    }
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
