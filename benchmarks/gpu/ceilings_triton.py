"""Two small kernels for what the chip can do at most: reading the L2 cache, and float32 multiply-adds."""

import triton
import triton.language as tl


@triton.jit
def read_cached(x, out, blocks, repeats, BLOCK: tl.constexpr):
    """Every program reads ``repeats`` different blocks past the L1 cache."""
    pid = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(repeats):
        block = (pid + i * 37) % blocks
        total += tl.load(x + block * BLOCK + lane, cache_modifier=".cg")
    tl.store(out + pid * BLOCK + lane, total)


@triton.jit
def multiply_add(out, repeats, BLOCK: tl.constexpr):
    """Eight independent chains a lane, 16 multiply-adds a turn."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = 1.0 + lane.to(tl.float32) * 1e-9
    b = lane.to(tl.float32) * 1e-9
    c0, c1, c2, c3 = a, a + 1, a + 2, a + 3
    c4, c5, c6, c7 = a + 4, a + 5, a + 6, a + 7
    for _i in range(repeats):
        for _j in tl.static_range(2):
            c0, c1, c2, c3 = c0 * a + b, c1 * a + b, c2 * a + b, c3 * a + b
            c4, c5, c6, c7 = c4 * a + b, c5 * a + b, c6 * a + b, c7 * a + b
    tl.store(out + lane, c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7)
