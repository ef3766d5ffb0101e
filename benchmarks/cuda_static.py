"""What the CUDA kernels compile to, for every target; needs nvcc, and cuobjdump (Triton carries one), but no device.

    python benchmarks/cuda_static.py     # writes benchmarks/results/cuda_static.csv

A row is one kernel for one target. `instructions` is the whole kernel; `product_loop` is the innermost loop with the
most products (FFMA, DFMA or HMMA), `products` how many it has, and `an_output` its instructions times 32 lanes over the
outputs of one trip, where a trip makes outputs of known number: 16 rows x 32 columns of each branch of multi_dwconv2d
on tensor cores. Shared memory is asked for at launch and depends on the call: at most 48 KiB, of rsdc2d 99 KiB.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"sm_80": "sm_80", "sm_90a": "sm_90a", "sm_100": "sm_100"}
COUNTED = ("FFMA", "DFMA", "HMMA", "LDSM", "LDS", "STS", "LDG", "STG", "SHFL", "BAR")
COLUMNS = (
    *("file", "kernel", "target", "registers", "spills", "instructions", *COUNTED),
    *("product_loop", "products", "an_output"),
)
PRODUCTS = ("FFMA", "DFMA", "HMMA")
MMA_OUTPUTS = 16 * 32


def cuobjdump() -> str:
    found = shutil.which("cuobjdump")
    if found is None:
        import triton

        found = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return found


def short(name: str) -> str:
    """TileConv<false, 1, 7> out of the mangled entry of it."""
    plain = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    inner = plain[plain.index("entry<") + 6 :] if "entry<" in plain else plain
    return re.sub(r"\w+::", "", inner.split(">(")[0]).replace("(bool)1", "true").replace("(bool)0", "false").strip()


def opcode(text: str) -> str:
    return re.sub(r"^@!?U?P\w+ ", "", text).split(".")[0].split()[0]


def product_loop(code: list[tuple[int, str]]) -> tuple[int, int]:
    """Instructions of the loop with the most products that holds no other loop, and its products."""
    loops = []
    for address, text in code:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    best = (0, 0)
    for first, last in loops:
        if any((a, b) != (first, last) and first <= a and b <= last for a, b in loops):
            continue
        body = [opcode(text) for address, text in code if first <= address <= last]
        found = sum(op in PRODUCTS for op in body)
        if found > best[1]:
            best = (len(body), found)
    return best


def rows(file: Path, target: str, folder: Path) -> list[dict[str, object]]:
    cubin = folder / f"{file.stem}.{target}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-cubin", f"-arch={target}", str(file)]
    subprocess.run([*command, "-o", str(cubin)], check=True)
    tool, usage = cuobjdump(), {}
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    for name, found in re.findall(r"Function (\S+?):\s*\n?\s*(.*)", text):
        usage[name] = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", found))
    text = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    made = []
    for part in text.split("Function : ")[1:]:
        name = part.split()[0]
        code = [(int(a, 16), op) for a, op in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", part)]
        while code and re.match(f"NOP|BRA {code[-1][0]:#x}$", code[-1][1]):
            code.pop()
        counts = Counter(opcode(op) for _, op in code)
        loop, products = product_loop(code)
        kernel = short(name)
        used = usage[name]
        row: dict[str, object] = {
            "file": f"{file.parent.name}/{file.name}",
            "kernel": kernel,
            "target": target,
            "registers": used["REG"],
        }
        row |= {"spills": int(used["LOCAL"]) + counts["LDL"] + counts["STL"], "instructions": len(code)}
        row |= {op: counts[op] for op in COUNTED}
        rows_of_pixels = kernel.startswith("MmaConv") and file.parent.name == "multi_dwconv2d"
        an_output = f"{loop * 32 / MMA_OUTPUTS:.1f}" if rows_of_pixels and loop else ""
        made.append(row | {"product_loop": loop or "", "products": products or "", "an_output": an_output})
    return sorted(made, key=lambda r: str(r["kernel"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cuda_static.csv")
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    options = parser.parse_args()
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"V([\d.]+)", version)
    with tempfile.TemporaryDirectory() as folder, options.out.open("w", newline="") as table:
        table.write(f"# nvcc {release[1] if release else 'unknown'}\n")
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for file in sorted((ROOT / "csrc").glob("*/cuda_*.cu")):
            for target in options.target:
                found = rows(file, target, Path(folder))
                writer.writerows(found)
                spills = sum(int(str(r["spills"])) for r in found)
                print(f"{file.parent.name}/{file.name} {target}: {len(found)} kernels, spills {spills}")


if __name__ == "__main__":
    main()
