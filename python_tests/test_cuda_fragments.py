"""The algebra of the tensor-core kernels in numpy: which lane's register holds which number, and that windows of 16
columns from 4 left of 8 outputs, and of 24 for the weight gradient, hold all that kernels up to 9 need.

Written from the instruction's definition, not from the kernels: what test_cuda_host runs has to agree with it.
"""

import numpy as np
import pytest

LEFT = 4
H, W = 20, 24
RNG = np.random.default_rng(7)
X, G = RNG.standard_normal((2, H, W))
LANES = [(lane, lane // 4, lane % 4) for lane in range(32)]


def operand_a(registers):
    """16 x 16 out of four registers of two numbers a lane."""
    a = np.zeros((16, 16))
    for lane, g, t in LANES:
        for r, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
            a[g + row, 2 * t + column : 2 * t + column + 2] = registers[r][lane]
    return a


def operand_b(registers):
    """16 x 8 out of two registers of two numbers a lane."""
    b = np.zeros((16, 8))
    for lane, g, t in LANES:
        for r in range(2):
            b[2 * t + 8 * r : 2 * t + 8 * r + 2, g] = registers[r][lane]
    return b


def load_matrix(rows, transposed=False):
    """ldmatrix: eight rows of eight numbers to two numbers a lane."""
    m = np.array(rows).T if transposed else np.array(rows)
    return np.array([m[g, 2 * t : 2 * t + 2] for _, g, t in LANES])


def pixels(image, row, column, count=8):
    """Numbers of a row, zeros outside the image."""
    line = np.zeros(count)
    for i in range(count):
        if 0 <= row < H and 0 <= column + i < W:
            line[i] = image[row, column + i]
    return line


def toeplitz(w, u):
    """Registers of T_u: column n is output n, row k the pixel k - LEFT from the first output."""
    k = w.shape[0]
    registers = np.zeros((2, 32, 2))
    for lane, n, t in LANES:
        for half in range(2):
            for e in range(2):
                v = 2 * t + e + 8 * half - LEFT - n + k // 2
                if 0 <= v < k:
                    registers[half, lane, e] = w[u, v]
    return registers


def definition(w):
    k, pad = w.shape[0], np.pad(X, w.shape[0] // 2)
    return sum(w[u, v] * pad[u : u + H, v : v + W] for u in range(k) for v in range(k))


@pytest.mark.parametrize("k", [3, 5, 7, 9])
def test_forward(k):
    w = RNG.standard_normal((k, k))
    y = np.full((H, W), np.nan)
    for row0 in range(0, H, 16):
        for column0 in range(0, W, 8):
            total = np.zeros((16, 8))
            for u in range(k):
                halves = [
                    load_matrix([pixels(X, row0 + top + q + u - k // 2, column0 - LEFT + left) for q in range(8)])
                    for left in (0, 8)
                    for top in (0, 8)
                ]
                total += operand_a(halves) @ operand_b(toeplitz(w, u))
            for _, g, t in LANES:  # the registers of the result
                for row in (g, g + 8):
                    if row0 + row < H:
                        y[row0 + row, column0 + 2 * t : column0 + 2 * t + 2] = total[row, 2 * t : 2 * t + 2]
    np.testing.assert_allclose(y, definition(w), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [3, 5, 7, 9])
def test_weight_gradient(k):
    sums = np.zeros((k, 16, 24))
    for row0 in range(0, H, 16):
        for column0 in range(0, W, 16):
            left = [
                load_matrix([pixels(G, row0 + low + q, column0 + side) for q in range(8)], transposed=True)
                for low in (0, 8)
                for side in (0, 8)
            ]
            for u in range(k):
                for part in range(3):
                    right = [
                        load_matrix(
                            [pixels(X, row0 + low + q + u - k // 2, column0 - LEFT + 8 * part) for q in range(8)],
                            transposed=True,
                        )
                        for low in (0, 8)
                    ]
                    sums[u, :, 8 * part : 8 * part + 8] += operand_a(left) @ operand_b(right)
    dw = np.zeros((k, k))
    for u in range(k):
        for output in range(16):
            for column in range(24):
                v = column - LEFT - output + k // 2
                if 0 <= v < k:
                    dw[u, v] += sums[u, output, column]
    pad = np.pad(X, k // 2)
    due = [[(G * pad[u : u + H, v : v + W]).sum() for v in range(k)] for u in range(k)]
    np.testing.assert_allclose(dw, due, rtol=0, atol=1e-11)
