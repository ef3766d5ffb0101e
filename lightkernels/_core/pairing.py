"""Which paths of a multi-path block exchange their outputs."""

from __future__ import annotations

from typing import Literal

from lightkernels._core.spec import require

Pairing = Literal["xor1", "butterfly", "rotate"]
PAIRINGS = ("xor1", "butterfly", "rotate")


def check_paths(op: str, channels: int, growth: int, paths: int, pairing: str) -> None:
    """The rules that the block's input, growth and paths obey together."""
    require(pairing in PAIRINGS, op, "pairing", f"be one of {', '.join(map(repr, PAIRINGS))}", pairing)
    require(paths == 1 or paths % 2 == 0, op, "paths", "be 1 or even", paths, "paths exchange their outputs in pairs.")
    require(channels % paths == 0, op, "paths", f"divide the {channels} channels of the block's input", paths)
    require(growth % paths == 0, op, "paths", f"divide growth, {growth}", paths)
    if pairing == "butterfly":
        require(paths & (paths - 1) == 0, op, "paths", "be a power of two for the butterfly pairing", paths)


def destination(pairing: str, paths: int, layer: int) -> tuple[int, ...]:
    """For each path, the path that receives its new channels."""
    if paths == 1:
        return (0,)
    if pairing == "rotate":
        return tuple((p + 1 + layer % (paths - 1)) % paths for p in range(paths))
    bit = 1 << layer % (paths.bit_length() - 1) if pairing == "butterfly" else 1
    return tuple(p ^ bit for p in range(paths))


def source(pairing: str, paths: int, layer: int) -> list[int]:
    """For each path, the path whose new channels it receives."""
    to = destination(pairing, paths, layer)
    return [to.index(p) for p in range(paths)]
