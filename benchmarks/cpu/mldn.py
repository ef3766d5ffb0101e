"""The table of MLDN: whole networks of 14-14-14 layers, batch 32, 32x32 images, against PyTorch's eager forms; and the
first four layers of their second block, which torch.compile takes a minute for and not an hour."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from cpu import mldn_nets
from cpu.common import Record, Row, Settings, Target, times, value
from lightkernels import models
from lightkernels._core import measure
from lightkernels.nn import MLDNBlock, condense, set_condensation_progress

GROWTH = (8, 16, 32)
SHAPES = {
    f"{name}{'-rsdc5' if conv == 'rsdc' else ''}": (paths, conv)
    for conv in ("standard", "rsdc")
    for name, paths in (("222", (2, 2, 2)), ("244", (2, 4, 4)), ("248", (2, 4, 8)))
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
OURS = "lightkernels"
BATCH = 32


def network(paths: tuple[int, ...], conv: str, progress: float, version: int = 1) -> nn.Module:
    torch.manual_seed(0)
    model = models.mldn(growth=GROWTH, paths=paths, conv=conv, version=version, dropout=0.0)
    set_condensation_progress(model, progress)
    return model


def _placed(model: nn.Module, layout: str) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=LAYOUTS[layout])


def _step(model: nn.Module, x: Tensor, g: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        for p in model.parameters():
            p.grad = None
        y: Tensor = model(x)
        y.backward(g)
        return y

    return call


def _infer(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            y: Tensor = model(x)
        return y

    return call


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Memory held between forward and backward, parameters left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    held: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        s = t.untyped_storage()
        if s.data_ptr() not in own:
            held[s.data_ptr()] = s.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    assert y.requires_grad
    return sum(held.values())


def _values(result: dict[str, measure.Timing], targets: dict[str, Callable[[str], bool]]) -> list[Record]:
    found = []
    for key, accepts in targets.items():
        labels = [n for n in result if accepts(n)]
        for layout in LAYOUTS:
            best = {s: min(labels, key=lambda n: getattr(result[n], s)) for s in ("min", "median")}
            figures = {s: getattr(result[n], s) / getattr(result[f"{OURS} {layout}"], s) for s, n in best.items()}
            found.append(value(key, layout, figures["min"], figures["median"], best["min"]))
    return found


def _measured(shape: str, kind: str, settings: Settings, x: Tensor, forms: dict[str, nn.Module]) -> Record:
    """``forms``: the first is ours; those called CondenseNet are another network and not compared; those called
    "compiled" go through torch.compile."""
    with torch.no_grad():
        g = torch.randn(copy.deepcopy(forms[OURS])(x).shape)  # of a copy, whose running statistics nobody reads
    calls, errors = {}, {}
    truth: Tensor | None = None
    for name, model in forms.items():
        for layout, fmt in LAYOUTS.items():
            placed, input_ = _placed(model, layout), x.contiguous(memory_format=fmt)
            placed.train(kind == "step")
            if name.startswith("compiled"):
                torch._dynamo.reset()
                placed = cast(nn.Module, torch.compile(placed, dynamic=False, options={"freezing": kind != "step"}))
            call = _step(placed, input_, g) if kind == "step" else _infer(placed, input_)
            label = f"{name} {layout}"
            if not name.startswith("CondenseNet"):
                if truth is None:
                    exact = copy.deepcopy(forms["layered"]).double().train(kind == "step")
                    truth = exact(x.double()).detach()
                errors[label] = measure.check(label, [call().detach()], [truth], 1e-4)
            calls[label] = call
    result = measure.interleaved(calls, rounds=settings.rounds, min_time=settings.min_time)
    keys: dict[str, Callable[[str], bool]] = {
        form: (lambda label, form=form: label.startswith(f"{form} ")) for form in list(forms)[1:]
    }
    values = _values(result, keys)
    if kind == "step" and "CondenseNet" in forms:
        for layout, fmt in LAYOUTS.items():
            input_ = x.contiguous(memory_format=fmt)
            bytes_ = {n: saved_bytes(_placed(forms[n], layout).train(), input_) for n in (OURS, "layered")}
            share = bytes_[OURS] / bytes_["layered"]
            values.append(value("saved", layout, share, share, f"layered {layout}"))
    return {
        "shape": shape,
        "dtype": "float32",
        "kind": kind,
        "backends": dict.fromkeys(LAYOUTS, "cpu"),
        "times": {name: times(t) for name, t in result.items()},
        "errors": {name: float(f"{e:.3g}") for name, e in errors.items()},
        "refused": {},
        "values": values,
    }


def _problems(settings: Settings) -> Iterator[tuple[str, tuple[int, ...], str, Tensor]]:
    for shape, (paths, conv) in SHAPES.items():
        if settings.shapes is None or shape in settings.shapes:
            yield shape, paths, conv, torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(settings: Settings) -> Iterator[Record]:
    for shape, paths, conv, x in _problems(settings):
        ours = network(paths, conv, 0.0)
        forms = {OURS: ours, "layered": mldn_nets.eager(ours, "layered"), "grouped": mldn_nets.eager(ours, "grouped")}
        yield _measured(shape, "step", settings, x, forms | {"CondenseNet": mldn_nets.condensenet(GROWTH)})


def masked(settings: Settings) -> Iterator[Record]:
    for shape, paths, conv, x in _problems(settings):
        ours = network(paths, conv, 1.0)
        forms = {OURS: ours, "layered": mldn_nets.eager(ours, "layered"), "grouped": mldn_nets.eager(ours, "grouped")}
        yield _measured(shape, "forward", settings, x, forms)


def condensed(settings: Settings) -> Iterator[Record]:
    for shape, paths, conv, x in _problems(settings):
        model = network(paths, conv, 1.0).eval()
        forms = {OURS: model.condense(), "layered": mldn_nets.eager(model, "layered")}  # type: ignore[operator]
        yield _measured(shape, "forward", settings, x, forms | {"condensed": mldn_nets.eager(model, "condensed")})


def second(settings: Settings) -> Iterator[Record]:
    model = network((2, 2, 2), "standard", 1.0, version=2).eval()
    forms = {OURS: model.condense(), "masked": model, "layered": mldn_nets.eager(model, "layered")}  # type: ignore[operator]
    forms["condensed"] = mldn_nets.eager(model, "condensed")
    for batch in (1, 16, 64):
        if settings.shapes is None or f"222-b{batch}" in settings.shapes:
            x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
            yield _measured(f"222-b{batch}", "forward", settings, x, forms)


BLOCK = "32x128x16x16, 4 layers"


def _compiled(settings: Settings, version: int = 1) -> Iterator[tuple[nn.Module, Tensor]]:
    if settings.compile and (settings.shapes is None or BLOCK in settings.shapes):
        torch.manual_seed(0)
        model = mldn_nets.OneBlock(MLDNBlock(128, 16, 4, 2, version=version))
        set_condensation_progress(model, 1.0)
        yield model, torch.randn(BATCH, 128, 16, 16, generator=torch.Generator().manual_seed(1))


def _with_compiled(model: nn.Module, form: str, ours: nn.Module | None = None) -> dict[str, nn.Module]:
    forms = {OURS: model if ours is None else ours, "layered": mldn_nets.eager(model, "layered")}
    seen = "plain" if form == "condensed" else form
    return forms | {form: mldn_nets.eager(model, form), "compiled": mldn_nets.eager(model, seen)}


def compiled_step(settings: Settings) -> Iterator[Record]:
    for model, x in _compiled(settings):
        yield _measured(BLOCK, "step", settings, x, _with_compiled(model, "grouped"))


def compiled_second(settings: Settings) -> Iterator[Record]:
    for model, x in _compiled(settings, version=2):
        yield _measured(f"{BLOCK}, version 2", "step", settings, x, _with_compiled(model, "layered"))


BLOCKS = {"32x16x32x32": 8, "32x128x16x16": 16, "32x352x8x8": 32}


def recomputed(settings: Settings) -> Iterator[Record]:
    """Four layers of the width of each block of the 222."""
    for (shape, growth), version in itertools.product(BLOCKS.items(), (1, 2)):
        if settings.shapes is None or shape in settings.shapes:
            n, channels, height, width = map(int, shape.split("x"))
            torch.manual_seed(0)
            block = MLDNBlock(channels, growth, 4, 2, version=version, recompute=False)
            ours = mldn_nets.OneBlock(block)
            again = copy.deepcopy(ours)
            cast(MLDNBlock, again.blocks[0]).recompute = True
            x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))
            forms = {OURS: ours, "recomputing": again, "layered": mldn_nets.eager(ours, "layered")}
            yield _measured(f"{shape}, version {version}", "step", settings, x, forms)


def peak(settings: Settings) -> Iterator[Record]:
    """The high-water mark of a fresh process during one step; Linux only."""
    probe, threads = Path(__file__).with_name("mldn_probe.py"), str(torch.get_num_threads())

    def bytes_of(form: str, version: int, layout: str) -> int:
        call = [sys.executable, str(probe), form, str(version), layout, str(BATCH), threads]
        run = subprocess.run(call, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"memory probe failed: {run.stderr.strip().splitlines()[-1:]}")
        return int(json.loads(run.stdout))

    for version in (1, 2):
        shape = f"222, version {version}"
        if settings.shapes is None or shape in settings.shapes:
            held = {f: {x: bytes_of(f, version, x) for x in LAYOUTS} for f in ("ours", "layered")}
            least = min(held["layered"], key=held["layered"].__getitem__)
            shares = {layout: held["ours"][layout] / held["layered"][least] for layout in LAYOUTS}
            yield {
                "shape": shape,
                "dtype": "float32",
                "kind": "step",
                "backends": dict.fromkeys(LAYOUTS, "cpu"),
                "times": {},
                "errors": {},
                "refused": {},
                "values": [value("peak", layout, s, s, f"layered {least}") for layout, s in shares.items()],
            }


def compiled_inference(settings: Settings) -> Iterator[Record]:
    for model, x in _compiled(settings):
        yield _measured(f"{BLOCK}, masked", "forward", settings, x, _with_compiled(model.eval(), "grouped"))
        forms = _with_compiled(model, "condensed", condense(model))
        yield _measured(f"{BLOCK}, condensed", "forward", settings, x, forms)


ROWS = (
    Row(
        "mldn_step",
        "MLDN training step",
        (
            Target("layered", "over its modules, eager", 3, 2),
            Target("grouped", "over grouped calls, eager", 2, 1.4),
            Target("CondenseNet", "over CondenseNet's step, eager", 2, 1.2),
            Target("saved", "saved memory, of its modules'", 0.35, 0.5, less=True),
        ),
        step,
    ),
    Row(
        "mldn_masked",
        "MLDN inference, masked",
        (
            Target("layered", "over its modules, eager", 2.8, 1.8),
            Target("grouped", "over grouped calls, eager", 2.8, 1.8),
        ),
        masked,
    ),
    Row(
        "mldn_condensed",
        "MLDN inference, condensed",
        (
            Target("condensed", "over condensed modules, eager", 2.8, 1.8),
            Target("layered", "over masked modules, eager", 2.8, 1.8),
        ),
        condensed,
    ),
    Row(
        "mldn_second",
        "MLDN inference, version 2, condensed",
        (
            Target("condensed", "over condensed modules, eager", 2.8, 1.8),
            Target("layered", "over masked modules, eager", 2.8, 1.8),
            Target("masked", "over ours, masked", 1.2, 1),
        ),
        second,
    ),
    Row(
        "mldn_step_compiled",
        "MLDN training step of a block, torch.compile",
        (
            Target("compiled", "over grouped calls, compiled", 3, 2),
            Target("grouped", "over grouped calls, eager", 2, 1.4),
        ),
        compiled_step,
    ),
    Row(
        "mldn_step_second",
        "MLDN training step of a block, version 2, torch.compile",
        (
            Target("compiled", "over its modules, compiled", 3, 2),
            Target("layered", "over its modules, eager", 3, 2),
        ),
        compiled_second,
    ),
    Row(
        "mldn_recompute",
        "MLDN training step of a block, recomputing",
        (Target("recomputing", "over ours, recomputing the 1x1"), Target("layered", "over its modules, eager", 3, 2)),
        recomputed,
    ),
    Row(
        "mldn_peak",
        "MLDN training step, peak memory",
        (Target("peak", "activation memory at its highest, of its modules'", 0.35, 0.5, less=True),),
        peak,
    ),
    Row(
        "mldn_inference_compiled",
        "MLDN inference of a block, compiled with freezing",
        (Target("compiled", "over grouped or condensed modules, compiled", 2.8, 1.8),),
        compiled_inference,
    ),
)
