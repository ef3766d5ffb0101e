"""The CUDA backend on a device that is not there: launchers and kernels as host code, run by an emulator of warps.

``build`` compiles csrc/*/cuda*.cu with the machine's C++ compiler; ``device`` puts the result in the place of
lightkernels._cuda, so that the backend runs on CPU tensors from Python down to the last lane.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lightkernels._core import cuda_host as core
from lightkernels._core import native
from lightkernels.ops import condensed_conv2d, mldn_block, multi_dwconv2d, rsdc2d

CSRC = Path(__file__).parents[2] / "csrc"
# A misaligned vector, which a device refuses, and an index outside an array of registers end the process here.
TRAPS = ["-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"]
FLAGS = [*TRAPS, "-std=c++17", "-O1", "-shared", "-fPIC", "-DLK_HOST", "-U_FORTIFY_SOURCE", "-w", f"-I{CSRC}"]


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int


class Fault(AssertionError):
    """The emulator found what a device would not have told."""


pointer = ctypes.c_void_p


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def sources() -> list[Path]:
    return [*sorted(CSRC.glob("*/cuda*.cu")), *sorted(Path(__file__).parent.glob("*.cpp"))]


def library(factory: pytest.TempPathFactory) -> Path:
    """The shared library, compiled once for all processes of a test run."""
    base = factory.getbasetemp()
    return build(base.parent if "popen" in base.name else base)


@functools.cache
def build(folder: Path) -> Path:
    texts = [p for p in sorted(CSRC.rglob("*")) if p.suffix in (".h", ".cu", ".cuh")]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in [*texts, *sources()])).hexdigest()[:16]
    library = folder / f"cuda_host_{digest}.so"
    with (folder / "cuda_host.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            objects = [folder / f"{source.parent.name}_{source.stem}.o" for source in sources()]
            flags = [f for f in FLAGS if f != "-shared"]
            made = [
                subprocess.Popen([compiler(), *flags, "-c", "-x", "c++", str(source), "-o", str(target)])
                for source, target in zip(sources(), objects, strict=True)
            ]
            assert all(process.wait() == 0 for process in made)
            subprocess.run([compiler(), *FLAGS, *map(str, objects), "-o", str(library)], check=True)
    return library


def _longs(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


class Module:
    """In the place of lightkernels._cuda."""

    def __init__(self, library: Path) -> None:
        self.c = ctypes.CDLL(str(library))
        self.c.lk_plan.restype = ctypes.c_void_p
        self.c.lk_rsdc_plan.restype = ctypes.c_void_p
        self.c.lk_condensed_plan.restype = ctypes.c_void_p
        self.c.lk_mldn_plan.restype = ctypes.c_void_p
        for name in ("lk_work_size", "lk_rsdc_work_size", "lk_condensed_work_size", "lk_mldn_work_size"):
            getattr(self.c, name).restype = ctypes.c_int64
        for name in ("lk_kernels", "lk_fault", "lk_launches"):
            getattr(self.c, name).restype = ctypes.c_char_p
        self.MULTI_DWCONV2D_BRANCHES = self.c.lk_branches()
        self.RSDC2D_KERNEL = self.c.lk_rsdc_most()
        self.reverse = self.dry = False
        self.most_shared = 227 * 1024
        self.launches: list[Launch] = []
        module = self

        class MultiDwconv2dPlan:
            def __init__(self, head: list[int], x: list[int], y: list[int], rows: list[list[int]], exact: bool) -> None:
                flat = [v for row in rows for v in row]
                made = module.c.lk_plan(_longs(head), _longs(x), _longs(y), _longs(flat), ctypes.c_int64(len(rows)))
                self.common = (ctypes.c_void_p(made), int(exact))

            def fwd(self, x: int, w: int, b: int, y: int, stream: int) -> None:
                module.run("lk_fwd", self.common, x, w, b, y)

            def bwd_x(self, g: int, w: int, gx: int, stream: int) -> None:
                module.run("lk_bwd_x", self.common, g, w, gx)

            def bwd_w(self, g: int, x: int, work: int, gw: int, stream: int) -> None:
                module.run("lk_bwd_w", self.common, g, x, work, gw)

            def work_size(self) -> int:
                return module.c.lk_work_size(*self.common)

            def kernels(self, kind: int) -> str:
                return module.c.lk_kernels(*self.common, kind).decode()

        class Rsdc2dPlan:
            def __init__(self, head: list[int], x: list[int], y: list[int]) -> None:
                made = module.c.lk_rsdc_plan(_longs(head), _longs(x), _longs(y))
                self.common = (ctypes.c_void_p(made),)

            def fwd(self, x: int, w: int, b: int, taps: int, work: int, y: int, stream: int) -> None:
                module.run("lk_rsdc_fwd", self.common, taps, x, w, b, work, y)

            def bwd_x(self, g: int, w: int, taps: int, work: int, gx: int, stream: int) -> None:
                module.run("lk_rsdc_bwd_x", self.common, taps, g, w, work, gx)

            def bwd_w(self, g: int, x: int, taps: int, work: int, gw: int, stream: int) -> None:
                module.run("lk_rsdc_bwd_w", self.common, taps, g, x, work, gw)

            def work_size(self, kind: int) -> int:
                return module.c.lk_rsdc_work_size(*self.common, kind)

            def kernel(self, kind: int) -> int:
                return module.c.lk_rsdc_kernel(*self.common, kind)

        class CondensedConv2dPlan:
            def __init__(self, head: list[int]) -> None:
                self.common = (ctypes.c_void_p(module.c.lk_condensed_plan(_longs(head))),)

            def fwd(self, x: int, w: int, scale: int, shift: int, index: int, y: int, stream: int) -> None:
                module.run("lk_condensed_fwd", self.common, x, w, scale, shift, index, y)

            def bwd(self, *addresses: int) -> None:
                module.run("lk_condensed_bwd", self.common, *addresses[:-1])

            def work_size(self) -> int:
                return module.c.lk_condensed_work_size(*self.common)

        class MldnBlockPlan:
            def __init__(self, head: list[int], eps: float, threshold: int, factor: float, table: list[int]) -> None:
                made = module.c.lk_mldn_plan(
                    _longs(head), ctypes.c_double(eps), _longs(table), ctypes.c_int64(len(table))
                )
                self.common = (ctypes.c_void_p(made),)

            def infer(self, given: list[int], most: int, work: int, y: int, stream: int) -> None:
                common = (*self.common, _longs(given), ctypes.c_int64(most))
                module.run("lk_mldn_infer", common, work, y)

            def cut(self, most: int) -> tuple[int, ...]:
                out = _longs([0] * 5)
                module.c.lk_mldn_cut(*self.common, ctypes.c_int64(most), out)
                return tuple(out)

            def work_size(self) -> int:
                return module.c.lk_mldn_work_size(*self.common)

        self.MldnBlockPlan = MldnBlockPlan
        self.CondensedConv2dPlan = CondensedConv2dPlan
        self.MultiDwconv2dPlan = MultiDwconv2dPlan
        self.Rsdc2dPlan = Rsdc2dPlan

    def image_arch(self, device: int) -> int:
        return 90

    def shared_memory(self, device: int) -> int:
        return self.most_shared

    def run(self, name: str, common: tuple[Any, ...], *addresses: int) -> None:
        self.c.lk_reset(int(self.reverse), int(self.dry))
        error = getattr(self.c, name)(*common, *map(ctypes.c_void_p, addresses))
        fault = self.c.lk_fault().decode()
        if fault or error:
            raise Fault(fault or f"{name}: error {error}")
        for line in self.c.lk_launches().decode().splitlines():
            kernel, *numbers = line.split()
            x, y, z, threads, shared = map(int, numbers)
            self.launches.append(Launch(kernel, (x, y, z), threads, shared))


@contextlib.contextmanager
def device(module: Module) -> Iterator[Module]:
    """Inside, backend "cuda" takes CPU tensors and runs them on the emulator."""
    load = native.load
    kept = {name: getattr(core, name) for name in ("DEVICE", "current_device", "stream")}
    forget()
    try:
        native.load = lambda name, *needed: (module, None) if name == "_cuda" else load(name, *needed)
        core.DEVICE, core.current_device, core.stream = "cpu", lambda: 0, lambda device: 0
        yield module
    finally:
        native.load = load
        for name, value in kept.items():
            setattr(core, name, value)
        forget()


def forget() -> None:
    for op in (condensed_conv2d.OP, mldn_block.OP, multi_dwconv2d.OP, rsdc2d.OP):
        op._memo.clear()
