"""Draws docs/receptive_field.png: what the middle output of five layers sees, from gradients.

    python docs/receptive_field.py [--trials 48] [--out docs/receptive_field.png]

Three stacks of equal price, nine taps a filter: 3x3 convolutions, RSDC of 5x5 and of 7x7, ReLU between the layers.
For every trial weights, taps and images are drawn anew; the picture is the root mean square of the gradient of the
middle output, all channels with random signs, with respect to each input pixel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightkernels.nn import RSDC2d

LAYERS, CHANNELS, SIZE, IMAGES = 5, 32, 37, 4
KINDS: dict[str, Callable[[], nn.Module]] = {
    "3x3 convolution": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "RSDC, 9 of 5x5": lambda: RSDC2d(CHANNELS, CHANNELS, 5),
    "RSDC, 9 of 7x7": lambda: RSDC2d(CHANNELS, CHANNELS, 7),
}


def stack(layer: Callable[[], nn.Module]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(LAYERS):
        one = layer()
        weight = one.weight
        assert isinstance(weight, Tensor)
        nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5)
        parts += [one, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def field(layer: Callable[[], nn.Module], trials: int) -> Tensor:
    """[SIZE, SIZE]: root mean square of the gradient, 1 at its largest."""
    total = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for _ in range(trials):
        x = torch.randn(IMAGES, CHANNELS, SIZE, SIZE, requires_grad=True)
        middle = stack(layer)(x)[:, :, SIZE // 2, SIZE // 2]
        (grad,) = torch.autograd.grad((middle * torch.randn_like(middle).sign()).sum(), x)
        total += grad.double().square().sum((0, 1))
    return (total / total.max()).sqrt()


def reach(picture: Tensor, share: float = 0.95) -> int:
    """Side of the smallest central square with that share of the gradient's energy."""
    energy, half = picture.square(), SIZE // 2
    for r in range(half + 1):
        inside = energy[half - r : half + r + 1, half - r : half + r + 1]
        if float(inside.sum()) >= share * float(energy.sum()):
            return 2 * r + 1
    return SIZE


def draw(pictures: dict[str, Tensor], path: Path) -> None:
    figure = Figure(figsize=(11, 4.1), dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(f"What the middle output of {LAYERS} layers sees: nine taps each", fontsize=12)
    for axes, (name, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        image = axes.imshow(picture.tolist(), cmap="magma", vmin=0, vmax=1)
        side = reach(picture)
        half = SIZE // 2 - side / 2
        axes.plot(
            [half, half + side, half + side, half, half],
            [half, half, half + side, half + side, half],
            color="#7fd4ff",
            linewidth=1,
        )
        touched = int((picture > 0).sum())
        axes.set_title(f"{name}\n95 % of the energy in {side}x{side}, {touched} pixels seen", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(image, ax=figure.axes, shrink=0.75, label="gradient, of its largest")
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("receptive_field.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    pictures = {name: field(layer, args.trials) for name, layer in KINDS.items()}
    for name, picture in pictures.items():
        print(f"{name}: 95 % of the energy in a square of {reach(picture)}, {int((picture > 0).sum())} pixels seen")
    draw(pictures, args.out)


if __name__ == "__main__":
    main()
