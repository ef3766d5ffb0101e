"""``mldn_probe.py FORM VERSION LAYOUT BATCH THREADS``: bytes of memory that a training step takes, as JSON.

The high-water mark of this process during one step, less what it held before and less the parameters' gradients. FORM
is ``ours`` or one of ``mldn_nets.eager``. A step of two images comes first, so that code and constants are there.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import find_package

find_package()

from cpu import mldn, mldn_nets  # noqa: E402
from cpu.memory_probe import status, touch_code  # noqa: E402


def main() -> None:
    form, version, layout, batch, threads = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])
    torch.set_num_threads(threads)
    model = mldn.network((2, 2, 2), "standard", 0.0, version)
    model = model if form == "ours" else mldn_nets.eager(model, form)
    fmt = mldn.LAYOUTS[layout]
    model = model.to(memory_format=fmt).train()
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=fmt)
    g = torch.randn(batch, model(x[:2]).shape[1])
    model(x[:2]).backward(g[:2])
    for p in model.parameters():
        p.grad = None
    touch_code()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    model(x).backward(g)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    print(json.dumps(status("VmHWM") - before - gradients))


if __name__ == "__main__":
    main()
