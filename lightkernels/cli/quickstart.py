"""``lightkernels quickstart``: train on real images, check against the reference, time it, leave files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import nn

from lightkernels import __version__, models
from lightkernels._core import measure, native
from lightkernels.cli import info
from lightkernels.cli.terminal import console, heading, milliseconds, table
from lightkernels.models.pydmobilenet import PydBlock
from lightkernels.train import check, checkpoint, digits, picture, speed
from lightkernels.train.files import writable
from lightkernels.train.loop import History, Recipe, fit, predict

MODEL = "pydmobilenet_concat_29_050"
GOAL = 0.97


@dataclass(frozen=True)
class Options:
    """The command's options, in its order."""

    seed: int
    epochs: int
    out: Path
    device: str
    threads: int
    speed: bool
    compile: bool


def run(options: Options) -> int:
    """The whole job. Returns 1 if the accuracy is below 97 % or a result is outside its bound."""
    out = console()
    writable(options.out)
    measure.steady_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = models.create_model(MODEL, num_classes=10)
    model = model.to(device=options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, test = (split.to(options.device) for split in digits.load())
    _introduce(out, model, len(train), len(test), options)

    start = time.perf_counter()
    history = _train(out, model, train, test, options)
    seconds = time.perf_counter() - start
    logits = predict(model, test.images)
    right = int((logits.argmax(1) == test.labels).sum())
    reached = right / len(test)
    verdict = "[green]reached[/]" if reached >= GOAL else f"[red]below {100 * GOAL:.0f} %[/]"
    summary = f"{100 * reached:.2f} % of {len(test)} test images, trained in {seconds:.1f} s"
    out.print(f"\n[bold]Result[/]  {summary}: goal {verdict}")
    weights = options.out / "checkpoint.pt"
    results = {"right": right, "images": len(test), "seed": options.seed, "seconds": seconds, "epochs": options.epochs}
    checkpoint.save(weights, checkpoint.Checkpoint(MODEL, 10, model.state_dict(), digits.NAME, results=results))

    agree = _compare(out, model, test)
    tables = _time(out, model, train, options) if options.speed else {}
    image = options.out / "quickstart.png"
    picture.draw(image, f"{MODEL}: {summary}", history, test, logits, tables)
    heading(out, "Files")
    out.print(f"{image}\n{weights}   (lightkernels evaluate {weights})", markup=False, soft_wrap=True)
    return int(reached < GOAL or not agree)


def _introduce(out: Console, model: nn.Module, train: int, test: int, options: Options) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    core, _ = native.load("_C")
    isa = core.isa() if core is not None else "native core not loaded, see lightkernels info"
    where = f"{info.cpu()} ({isa}), {torch.get_num_threads()} threads" if options.device == "cpu" else options.device
    out.print(f"[bold]lightkernels {__version__} quickstart[/]")
    out.print(f"network  {MODEL}, {parameters:,} parameters; depthwise 3x3, 5x5 and 7x7 in one pass")
    out.print(f"images   handwritten digits of scikit-learn: {train} to learn, {test} to test, 16x16")
    out.print(f"machine  {where}, torch {torch.__version__}\n", markup=False)


def _train(out: Console, model: nn.Module, train: digits.Split, test: digits.Split, options: Options) -> History:
    recipe = Recipe(epochs=options.epochs)
    columns = (
        TextColumn("[bold]Training[/]"),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out) as bar:
        task = bar.add_task("", total=None)

        def tell(history: History) -> None:
            steps, tested = len(history.losses), len(history.accuracies)
            ended = steps * recipe.epochs == tested * history.total
            accuracy = f"test {100 * history.accuracies[-1]:5.2f} %" if tested else ""
            epoch = tested if ended else tested + 1
            text = f"epoch {epoch:2}/{recipe.epochs}  loss {history.losses[-1]:.3f}  {accuracy}"
            bar.update(task, total=history.total, completed=steps, description=text)
            if ended and not out.is_terminal:  # a log has no use for a bar that moves
                out.print(text)

        return fit(model, train, test, recipe, options.seed, tell)


def _compare(out: Console, model: nn.Module, test: digits.Split) -> bool:
    """Prints which backend ran each layer and how far the results are from the reference's; whether all is in bound."""
    with check.recording(model) as runs:
        predict(model, test.images)
    heading(out, f"Which backend ran each layer ({len(test)} test images)")
    made = table("layer", "input", "kernels", "layout", "backend")
    for run in runs:
        kernels = f"{'+'.join(map(str, run.kernels))} {run.combine}"
        made.add_row(run.name, "x".join(map(str, run.shape)), kernels, run.layout, run.backend or "[red]none[/]")
    out.print(made)

    heading(out, "The same weights through the reference; RMS errors from float64, which may not exceed the bound")
    layers = check.compare_layers(model, test.images[:64])
    worst = max(layers, key=lambda a: a.error / a.bound)
    made = table("", "largest difference", "RMS error", "reference's", "bound", "", right=(1, 2, 3, 4))
    agreements = [
        ("logits", check.compare_outputs(model, test.images)),
        (f"{worst.name} (worst of {len(layers)})", worst),
    ]
    for name, found in agreements:
        numbers = (found.largest, found.error, found.reference_error, found.bound)
        made.add_row(name, *(f"{n:.2e}" for n in numbers), "[green]within[/]" if found.holds else "[red]outside[/]")
    out.print(made)
    return all(found.holds for found in [agreements[0][1], *layers])


def _time(out: Console, model: nn.Module, train: digits.Split, options: Options) -> dict[str, dict[str, float]]:
    """Prints and returns seconds of a training step, for the network and for one block."""
    batch = Recipe().batch
    images, labels = train.images[:batch], train.labels[:batch]
    compiled = options.compile and measure.has_compiler()
    block = next(module for module in model.modules() if isinstance(module, PydBlock))
    x = torch.randn(batch, 32, digits.SIZE, digits.SIZE, device=options.device)
    tables = {}
    with out.status("timing"):
        tables["Training step, whole network"] = speed.seconds(speed.training_step(model, images, labels))
    with out.status("timing one block; torch.compile takes its time"):
        tables["Training step, one block"] = speed.seconds(speed.block_step(block, x, compiled))
    for title, seconds in tables.items():
        heading(out, f"{title}, {batch} images")
        best = min(value for name, value in seconds.items() if name not in speed.OURS)
        made = table("", "a step", "times as fast as the best of PyTorch", right=(1, 2))
        for name, value in seconds.items():
            made.add_row(name, milliseconds(value), f"{best / value:.2f}" if name in speed.OURS else "")
        if "block" in title and not compiled:
            made.add_row(speed.COMPILED, "not measured", "")
        out.print(made)
    return tables
