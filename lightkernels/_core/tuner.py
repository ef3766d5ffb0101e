"""Times backends and tiles of a call, so that ``tuned/`` can say which is fastest. Runs only when asked to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightkernels._core import measure, tuning

NAMES = ("cuda", "triton", "torch")
GAIN = 0.97  # of the best time so far, that a tile must stay below: the clock differs by less from run to run
FACTOR = 4  # of the first tile's numbers, within which others are tried
TF32 = 2.0**-9
Clock = Callable[[Callable[[], Any]], float]


class Truth(NamedTuple):
    results: list[Tensor]
    tolerance: float


@dataclass(frozen=True)
class Call:
    """One call of an operator as its backends get it: ``tensors`` in the order of the dispatcher's schema."""

    op: Any
    spec: Any
    tensors: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, op: Any, args: Sequence[Any]) -> Call:
        """From the arguments of a dispatcher call."""
        count = 3 + op.constants if op.bilinear else len(op.inputs._fields)
        tensors = (t.detach() if isinstance(t, Tensor) else None for t in args[:count])
        return cls(op, op.called(args), tuple(tensors))

    @property
    def device(self) -> torch.device:
        x = self.tensors[0]
        assert x is not None
        return x.device

    def wide(self) -> Call:
        """The same call in float64, in which the truth is computed."""
        spec = dataclasses.replace(self.spec, dtype=torch.float64, cache={})
        tensors = (t.double() if t is not None and t.is_floating_point() else t for t in self.tensors)
        return Call(self.op, spec, tuple(tensors))

    @cached_property
    def g(self) -> Tensor:
        """An output gradient, dense as the output is, equal in every process."""
        x = self.tensors[0]
        assert x is not None
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(self.spec.y_shape, generator=generator)
        return x.new_empty_strided(self.spec.y_shape, self.spec.y_stride).copy_(values)

    def on(self, backend: str, kind: str, g: Tensor | None = None) -> Callable[[], Any]:
        """Pass ``kind`` on one backend, ready to be called; its Spec is new, so that a tile is looked up again."""
        spec = dataclasses.replace(self.spec, cache={})
        function = self.op.backends[backend].function(kind)
        g = self.g if g is None else g
        if self.op.bilinear:
            x, w, b, *constants = self.tensors
            chosen = {"fwd": (x, w, b), "bwd_x": (g, w), "bwd_w": (g, x)}[kind]
            return lambda: function(spec, *chosen, *constants)
        t = self.op.inputs(*self.tensors)
        if kind == "fwd":
            infer = getattr(self.op.backends[backend].module, "infer", None) if spec.inference else None
            return (lambda: infer(spec, t)) if infer is not None else (lambda: function(spec, t))
        out = self.op.backends["reference"].function("fwd")(spec, t)
        t = self.op.kept(spec, t)
        return lambda: function(spec, g, t, out)

    def truth(self, kind: str) -> Truth:
        """In float64, and the error that a result may have: twice that of the reference in the call's own dtype, which
        through a whole block of layers is more than a single operator's.
        """
        from lightkernels._core.triton_host import dot_mode

        truth = outputs(self.wide().on("reference", kind, self.g.double())())
        loose = self.spec.dtype is torch.float32 and self.device.type == "cuda" and dot_mode(torch.float32) == "tf32"
        usual = TF32 if loose else measure.TOLERANCE[self.spec.dtype]
        own = measure.relative_error(outputs(self.on("reference", kind)()), truth)
        return Truth(truth, max(usual, 2 * own))


def outputs(result: Any) -> list[Tensor]:
    """What is compared of a pass's result: gradients all, of a fused forward its first output."""
    if isinstance(result, Tensor):
        return [result]
    if hasattr(result, "_fields"):
        return [result[0]]
    return [t for t in result if t is not None]


def clock_of(device: torch.device) -> Clock:
    """Seconds of a call: on a GPU by Triton's own timer, which clears the cache between calls."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return lambda call: 1e-3 * float(do_bench(call, warmup=10, rep=40, return_mode="median"))
    return lambda call: measure.interleaved({"": call}, rounds=2, min_time=0.01)[""].min


@dataclass
class Tuner:
    """Finds the fastest backend and, for Triton, tile of each pass of a call.

    Args:
        clock: seconds of a call.
        names: backends to compare, of those that can run the call.
        tries: tiles timed for one pass; 0 leaves the heuristic's.
        refused: told of each backend or tile that gave a wrong result or none.
    """

    clock: Clock
    names: Sequence[str] = NAMES
    tries: int = 8
    refused: Callable[[str], object] = lambda text: None

    def entries(self, call: Call) -> Iterator[dict[str, Any]]:
        """The entries of ``tuned/`` for every pass of a call."""
        key = tuning.key_of(call.spec)
        able = [n for n in self.names if n in call.op.backends and call.op.backends[n].why_not(call.spec) is None]
        for kind in call.op.kinds:
            if kind == "bwd" and call.spec.definition_only:
                continue
            truth = call.truth(kind)
            times: dict[str, float] = {}
            for name in able:
                seconds = self.seconds(call, name, kind, truth)
                if seconds is None:
                    continue
                if name == "triton" and self.tries:
                    found = self.tile(call, kind, truth)
                    if found is not None:
                        seconds = 1e-6 * found["us"]
                        yield found
                times[name] = seconds
            if times:
                best = min(times, key=lambda name: times[name])
                others = {name: 1e6 * seconds for name, seconds in times.items()}
                config = {"backend": best}
                yield {"pass": f"auto {kind}", "key": key, "config": config, "us": others[best], "others": others}

    def seconds(self, call: Call, name: str, kind: str, truth: Truth, what: str = "") -> float | None:
        """Of a pass on one backend; None, and ``refused`` is told, if it fails or its result is wrong."""
        try:
            run = call.on(name, kind)
            measure.check(f"{name} {kind}", outputs(run()), *truth)
            return self.clock(run)
        except Exception as error:
            if call.device.type == "cuda":
                torch.cuda.synchronize(call.device)  # fails too where the device is lost: nothing after it would count
            text = (str(error) or repr(error)).splitlines()[0]
            self.refused(f"{call.op.name} {kind} on {name}{what}: {text}")
            return None

    def tile(self, call: Call, kind: str, truth: Truth) -> dict[str, Any] | None:
        """The entry of the fastest tile: from the heuristic's, one number after another is doubled and halved while
        that helps. None where no tile is looked up.
        """
        with tuning.trial(None) as trial:
            first = self.seconds(call, "triton", kind, truth)
        if first is None or not trial.asked:
            return None
        primitive, key, start = trial.asked[0]
        times = {tuple(start.items()): first}
        best = start
        known = tuning.lookup(call.op.name, primitive, call.device, key)
        if known is not None and known.config != start:  # of an earlier run, or a like call's
            with tuning.trial(known.config):
                seconds = self.seconds(call, "triton", kind, truth, f" with {known.config}")
            times[tuple(known.config.items())] = math.inf if seconds is None else seconds
            best = min(start, known.config, key=lambda tile: times[tuple(tile.items())])
        while True:
            near = [t for t in neighbours(best, start) if tuple(t.items()) not in times]
            for tile in near[: max(0, self.tries + 1 - len(times))]:
                with tuning.trial(tile):
                    seconds = self.seconds(call, "triton", kind, truth, f" with {tile}")
                times[tuple(tile.items())] = math.inf if seconds is None else seconds
            fastest = min(near, key=lambda t: times.get(tuple(t.items()), math.inf), default=best)
            if times.get(tuple(fastest.items()), math.inf) > GAIN * times[tuple(best.items())]:
                us = 1e6 * times[tuple(best.items())]
                return {"pass": primitive, "key": key, "config": best, "us": us}
            best = fastest


def neighbours(tile: dict[str, int], first: dict[str, int]) -> list[dict[str, int]]:
    """Tiles of which one number is twice or half ``tile``'s, none further than ``FACTOR`` from the first one's."""
    found = []
    for name, value in tile.items():
        for other in (2 * value, value // 2):
            if other >= 1 and first[name] <= FACTOR * other and other <= FACTOR * first[name]:
                found.append({**tile, name: other})
    return found
