"""What the launches of a Triton backend compile to, found without a device.

The launcher runs on meta tensors while `record` holds its kernels; each recorded launch is then specialised as Triton's
own JIT would (16-byte aligned pointers, multiples of 16, ones) and compiled for any target, and the machine code read.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its programs, and its arguments by name."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def trips(self) -> int | None:
        """Of the kernel's one loop: PER items, or COUNT taps in blocks of BK of CIN channels; None: not known."""
        values = self.arguments
        if "TABLE" in values and "COUNT" in values and not (values["TABLE"] or values["FLAT"]):
            return values["COUNT"] * -(-values["CIN"] // values["BK"])
        return values.get("PER")


@dataclass(frozen=True)
class Code:
    """A compiled kernel. `loop` is the body of its one loop (0: none, or several), `outside` everything else."""

    registers: int
    shared: int
    spills: int
    outside: int
    loop: int
    loops: int
    opcodes: Counter[str]

    def lane_instructions(self, launch: Launch, outputs: int) -> float:
        """Instructions that the launch issues, times 32 lanes, an output; every branch counted as taken both ways."""
        trips = launch.trips
        if self.loops > 1 or (self.loops and trips is None):
            return math.nan
        warps = launch.options["num_warps"]
        return (self.outside + self.loop * (trips or 0)) * 32 * warps * launch.programs / outputs


@contextlib.contextmanager
def record(*modules: ModuleType) -> Iterator[list[Launch]]:
    """Inside, the modules' kernels note their launches instead of running."""
    launches: list[Launch] = []
    saved: list[tuple[ModuleType, str, Any]] = []
    for module in modules:
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, triton.JITFunction):
                saved.append((module, name, kernel))
                setattr(module, name, _Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in saved:
            setattr(module, name, kernel)


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            options = {k: kwargs.pop(k) for k in OPTIONS if k in kwargs}
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
            self.launches.append(Launch(self.kernel, math.prod(grid), arguments, options))

        return launch


def compile_for(launch: Launch, capability: int) -> Code:
    """Machine code of a launch for sm_<capability>."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        free = parameter.do_not_specialize
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not free):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not free:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    usage, text = _dump(compiled.asm["cubin"])
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    instructions = [(int(a, 16), op) for a, op in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", text)]
    while instructions and re.match(f"NOP|BRA {instructions[-1][0]:#x}$", instructions[-1][1]):
        instructions.pop()
    loops = []
    for address, op in instructions:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", op)
        if target and int(target[1], 16) <= address:
            loops.append((int(target[1], 16), address))
    inside = sum(loops[0][0] <= a <= loops[0][1] for a, _ in instructions) if len(loops) == 1 else 0
    opcodes = Counter(re.sub(r"^@!?U?P\w+ ", "", op).split(".")[0].split()[0] for _, op in instructions)
    spills = int(found["STACK"]) + int(found["LOCAL"]) + opcodes["LDL"] + opcodes["STL"]
    return Code(
        int(found["REG"]), compiled.metadata.shared, spills, len(instructions) - inside, inside, len(loops), opcodes
    )


def _dump(cubin: bytes) -> tuple[str, str]:
    """cuobjdump's resource usage and machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        return run([tool, "-res-usage", path]).stdout, run([tool, "-sass", path]).stdout


def ptxas_version() -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", text)
    return found[1] if found else "unknown"
