"""The commands with a terminal interface. ``info`` and ``explain`` are in ``plain``."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console

from lightkernels._core.backends import NAMES, BackendUnavailable
from lightkernels.cli import COMMANDS, interrupted

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
F = TypeVar("F", bound=Callable[..., Any])


@app.callback()
def _commands() -> None:
    """Fused kernels for lightweight CNNs."""


def command(function: F) -> F:
    """Registers a command; Ctrl-C and the errors that a user can mend end it with one line and no traceback."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        from lightkernels._core.measure import WrongResult
        from lightkernels.train.checkpoint import CheckpointError

        try:
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            code = interrupted()
        except (BackendUnavailable, CheckpointError, WrongResult, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"lightkernels: {error}", markup=False)
            code = 1
        raise typer.Exit(code)

    name = function.__name__
    app.command(name, help=COMMANDS[name].help)(run)
    return function


def backend_name(value: str) -> str:
    if value not in NAMES:
        raise typer.BadParameter(f"must be one of {', '.join(NAMES)}")
    return value


def device_name(value: str) -> str:
    try:
        torch.empty(1, device=value).item()  # of "meta" nothing can be read
    except Exception as error:  # torch raises several kinds
        raise typer.BadParameter(str(error).splitlines()[0]) from error
    return value


def seed_number(value: int) -> int:
    try:
        torch.Generator().manual_seed(value)
    except (ValueError, RuntimeError) as error:
        raise typer.BadParameter("must fit 64 bits") from error
    return value


class Shapes(str, enum.Enum):
    quick = "quick"
    all = "all"


class Dtype(str, enum.Enum):
    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Preset(str, enum.Enum):
    paper = "paper"
    recommended = "recommended"


class CostScope(str, enum.Enum):
    replaced = "replaced"
    paper = "paper"
    whole = "whole"


class WeightsFile(str, enum.Enum):
    safetensors = "safetensors"
    torch = "torch"


Device = Annotated[str, typer.Option(callback=device_name, help="Where to run: cpu, cuda, cuda:1, ...")]
Threads = Annotated[int, typer.Option(min=0, help="Processor threads; 0 leaves torch's number.")]
Backend = Annotated[str, typer.Option(callback=backend_name, help=f"One of {', '.join(NAMES)}.")]


@command
def quickstart(
    seed: Annotated[int, typer.Option(callback=seed_number, help="Of weights and of the order of the images.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the picture.")] = Path("runs/quickstart"),
    device: Device = "cpu",
    threads: Threads = 0,
    speed: Annotated[bool, typer.Option(help="Time a training step against PyTorch.")] = True,
    compile: Annotated[bool, typer.Option(help="Time torch.compile too, on one block.")] = True,
) -> int:
    from lightkernels.cli import quickstart as job

    return job.run(job.Options(seed, epochs, out, device, threads, speed, compile))


@command
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A file that quickstart wrote.")],
    backend: Backend = "auto",
    device: Device = "cpu",
    threads: Threads = 0,
) -> int:
    from lightkernels.cli import evaluate as job

    return job.run(checkpoint, backend, device, threads)


@command
def models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names, such as 'pydmobilenet_add_*'.")] = "*",
    check: Annotated[bool, typer.Option("--check", help="Count every network again; takes a minute.")] = False,
) -> int:
    from lightkernels.cli import models as job

    return job.run(pattern, check)


@command
def compress(
    model: Annotated[
        str, typer.Option(help="A network of the zoo, or package.module:function that returns one.")
    ] = "cifar_resnet20",
    data: Annotated[
        str, typer.Option(help="'digits', or package.module:function that returns (train loader, test loader).")
    ] = "digits",
    operators: Annotated[str, typer.Option(help="A set, SOP1 to SOP10, or names with commas between.")] = "SOP8",
    preset: Annotated[Preset, typer.Option(help="All numbers not given here.")] = Preset.recommended,
    lam: Annotated[list[float] | None, typer.Option(help="Weight of the cost; several make a Pareto figure.")] = None,
    target_params: Annotated[str | None, typer.Option(help="At most so many parameters, or as in 40%.")] = None,
    target_macs: Annotated[str | None, typer.Option(help="At most so many multiply-adds, or as in 40%.")] = None,
    target_latency: Annotated[str | None, typer.Option(help="At most so many seconds, or as in 40%.")] = None,
    scope: Annotated[CostScope, typer.Option(help="What the target speaks of.")] = CostScope.whole,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the search, warm-up and freeze included.")] = None,
    finetune_epochs: Annotated[int | None, typer.Option(min=0, help="Of the network that was found.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="Images in a step, for the digits.")] = 64,
    names: Annotated[list[str] | None, typer.Option(help="Shell pattern of the layers that may be replaced.")] = None,
    sizes: Annotated[list[int] | None, typer.Option(help="Kernel sizes that are replaced; 3 if left out.")] = None,
    pools: Annotated[bool, typer.Option(help="Replace max-pools too.")] = False,
    baselines: Annotated[int, typer.Option(min=0, help="Random architectures of equal cost to train.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what is reachable.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in the folder.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("runs/compress"),
    weights: Annotated[WeightsFile, typer.Option(help="How the weights are stored.")] = WeightsFile.safetensors,
    device: Device = "cpu",
    threads: Threads = 0,
    seed: Annotated[int, typer.Option(callback=seed_number, help="Of weights, gates and the images' order.")] = 0,
) -> int:
    from lightkernels.cli import compress as job

    options = job.Options(
        model, data, operators, preset.value, lam or [], target_params, target_macs, target_latency, scope.value,
        epochs, finetune_epochs, batch, names or [], sizes or [3], pools, baselines, dry_run, resume, out,
        weights.value, device, threads, seed,
    )  # fmt: skip
    return job.run(options)


@command
def bench(
    op: Annotated[str, typer.Argument(help="The operator.")] = "multi_dwconv2d",
    shapes: Annotated[Shapes, typer.Option(help="Two shapes of each kind, or every one.")] = Shapes.quick,
    dtype: Annotated[Dtype, typer.Option(help="Element type.")] = Dtype.float32,
    csv: Annotated[Path | None, typer.Option(help="Write every candidate's times to this file.")] = None,
    compile: Annotated[bool, typer.Option(help="Compare with torch.compile too; takes minutes.")] = False,
    threads: Threads = 0,
) -> int:
    from lightkernels.cli import bench as job

    return job.run(job.Options(op, shapes.value, dtype.value, csv, compile, threads))


@command
def tune(
    names: Annotated[list[str] | None, typer.Argument(metavar="[OP]...", help="Operators; all if left out.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="The calls of a network of the zoo, or of package.module:function; may be repeated."),
    ] = None,
    shapes: Annotated[Shapes, typer.Option(help="Of operators: two of each kind, or every one.")] = Shapes.quick,
    batch: Annotated[int, typer.Option(min=1, help="Images, for --model.")] = 64,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images, for --model.")] = 32,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Element types; may be repeated.")] = None,
    tries: Annotated[int, typer.Option(min=0, help="Tiles to compile and time for a Triton kernel; 0: none.")] = 8,
    device: Device = "cuda",
) -> int:
    from lightkernels.cli import tune as job

    dtypes = dtype or [Dtype.float32, Dtype.bfloat16, Dtype.float16]
    options = job.Options(
        names or [], model or [], shapes.value, batch, size, [one.value for one in dtypes], tries, device
    )
    return job.run(options)
