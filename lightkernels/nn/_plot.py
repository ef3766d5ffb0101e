"""The picture of a layer's taps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 8


def tap_figure(taps: Tensor, kernel_size: int, filters: int, limit: int) -> Figure:
    """The first ``limit`` of the sets [S, T], and the share of all filters that have each cell."""
    try:
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        mend = 'pip install "lightkernels[train]"'
        raise ImportError(f"RSDC2d.plot_taps needs matplotlib. Hint: {mend}") from error
    shown = min(limit, len(taps))
    rows = -(-shown // _COLUMNS)
    figure: Any = NewFigure(figsize=(11, max(2.6, 1.15 * rows)), dpi=110, facecolor="white", layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    grid: Any = left.subplots(rows, _COLUMNS, squeeze=False)
    for i, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if i < shown:
            cells = torch.zeros(kernel_size**2).index_fill(0, taps[i], 1).view(kernel_size, kernel_size)
            axes.imshow(cells.tolist(), cmap="Blues", vmin=0, vmax=1.3)
            axes.set_title(str(i), fontsize=7, pad=2)
    sets, count = taps.shape
    left.suptitle(f"{count} of {kernel_size}x{kernel_size} cells, {shown} of {sets} sets", fontsize=10)
    share = torch.bincount(taps.flatten(), minlength=kernel_size**2).double().view(kernel_size, kernel_size) / sets
    axes = right.subplots()
    image = axes.imshow(share.tolist(), cmap="viridis", vmin=0)
    touched = int((share > 0).sum())
    axes.set_title(f"share of the {filters} filters\n{touched} of {kernel_size**2} cells are used", fontsize=8)
    right.colorbar(image, ax=axes, shrink=0.8)
    drawn: Figure = figure
    return drawn
