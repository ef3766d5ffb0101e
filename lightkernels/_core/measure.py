"""Timing that is fair to both sides: shared by ``benchmarks/`` and the ``bench`` command. Needs torch alone.

Candidates run in turn within one process, so that a change of the machine's speed meets all of them, and none is
timed before its results were compared with float64 truth. Page faults are removed for every candidate alike: glibc
serves large tensors from fresh pages and returns them when they are freed, which makes an operator that is given a new
output in every call look up to nine times slower than it is. ``steady_memory`` tells the allocator to keep its
pages, and ``interleaved`` counts the minor page faults inside the timed regions, so that a result says whether any
were left.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightkernels._core.spec import Layout

PASSES = ("forward", "grad_x", "grad_w", "step")

# Relative RMS error that a candidate may have. One wrong element in two million exceeds float32's; 16-bit results may
# be rounded once a branch.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MADV_HUGEPAGE, _HUGE = 14, 2**21
_BATCH_SECONDS = 2e-4
_FIRST_CALL_SECONDS = 0.5
_FAULTS_ALLOWED = 8


class WrongResult(AssertionError):
    """A candidate disagrees with the truth, so its time would mean nothing."""


def steady_memory(reserve: int = 2**28, huge: bool = False) -> bool:
    """Make the C allocator of this process keep every page it got; False where there is no glibc.

    Call it before the first large tensor. The heap then grows through brk alone (M_MMAP_MAX=0), is never trimmed
    (M_TRIM_THRESHOLD) and is one for all threads (M_ARENA_MAX=1), and ``reserve`` bytes of it are touched at once, so
    that aligned requests find room: before 2.38, glibc cannot give the space of a freed aligned block to the next one
    of the same size. ``huge`` asks for the reserve in huge pages, which Linux may grant: a training step touches more
    small pages than a processor can remember.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    done = [libc.mallopt(parameter, value) == 1 for parameter, value in settings]
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(reserve)
    if block:
        if huge:
            libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            first, end = -(-block // _HUGE) * _HUGE, (block + reserve) // _HUGE * _HUGE
            if end > first:
                libc.madvise(first, end - first, _MADV_HUGEPAGE)
        ctypes.memset(block, 1, reserve)
        libc.free(block)
    return all(done) and bool(block)


def page_faults() -> int:
    """Minor page faults of this process, all threads; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@dataclass(frozen=True)
class Timing:
    """Seconds a call: one sample a batch of ``number`` calls. ``faults`` is what was left inside timed regions."""

    samples: tuple[float, ...]
    number: int
    faults: int

    @property
    def min(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The middle half of the samples, as a fraction of the median."""
        if len(self.samples) < 4:
            return (max(self.samples) - self.min) / self.median
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.median


@dataclass(frozen=True)
class Candidate:
    """A call to time, and what to do before each of its turns, such as setting the number of threads.

    ``seen`` is how long a call took before, if that is known.
    """

    call: Callable[[], object]
    prepare: Callable[[], object] | None = None
    seen: float | None = None


@dataclass
class _Turn:
    call: Callable[[], object]
    prepare: Callable[[], object] | None
    number: int = 1
    best: float = 0.0
    samples: list[float] = field(default_factory=list)
    faults: int = 0

    def calibrate(self, seen: float | None, hopeless: float) -> None:
        if self.prepare is not None:
            self.prepare()
        if seen is not None and seen > hopeless:
            self.best = seen
            self.samples.append(seen)
            return
        self.call()
        self.best = self._batch(1)
        if self.best < _FIRST_CALL_SECONDS:
            self.best = min(self.best, self._batch(8 if self.best < _BATCH_SECONDS else 1))
        self.number = max(1, math.ceil(_BATCH_SECONDS / self.best))

    def _batch(self, number: int) -> float:
        call = self.call
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) / number

    def run(self, min_time: float) -> None:
        if self.prepare is not None:
            self.prepare()
        if self.best * self.number < min_time:
            self.call()
        for attempt in range(3):
            samples: list[float] = []
            spent, faults = 0.0, page_faults()
            while not samples or spent < min_time:
                sample = self._batch(self.number)
                samples.append(sample)
                spent += sample * self.number
            faults = page_faults() - faults
            if faults <= _FAULTS_ALLOWED or attempt == 2 or self.best > min_time:
                self.samples += samples
                self.best = min(self.best, *samples)
                self.faults += faults if faults > _FAULTS_ALLOWED else 0
                return


def interleaved(
    candidates: Mapping[str, Callable[[], object] | Candidate],
    *,
    rounds: int = 5,
    min_time: float = 0.05,
    give_up: float = 8.0,
) -> dict[str, Timing]:
    """Time the candidates in turn, A B C C B A ..., each for at least ``min_time`` seconds a round.

    Calls shorter than 0.2 ms are timed in batches. A turn with page faults in its timed region is repeated, at most
    twice; what then is left is in ``Timing.faults``. A candidate ``give_up`` times slower than the fastest is timed
    in the first round only, and if a call of half a second or more was already seen to be twice as slow as that, not
    again: it decides nothing and would take most of the time.

    Args:
        candidates: name to a call without arguments, or to a ``Candidate`` with something to prepare.
        rounds: turns of each candidate.
        min_time: seconds timed in each turn; a longer call is timed once a turn.

    Raises:
        ValueError: without candidates or rounds.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"interleaved: there must be candidates and rounds; got {len(candidates)} and {rounds}")
    turns = {}
    for name, given in candidates.items():
        candidate = given if isinstance(given, Candidate) else Candidate(given)
        turns[name] = _Turn(candidate.call, candidate.prepare)
    fastest = math.inf
    for turn, given in zip(turns.values(), candidates.values(), strict=True):
        seen = given.seen if isinstance(given, Candidate) else None
        turn.calibrate(seen, max(_FIRST_CALL_SECONDS, 2 * give_up * fastest))
        fastest = min(fastest, turn.best)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            limit = give_up * min(turn.best for turn in turns.values())
            order = list(turns.values())
            for turn in order if i % 2 == 0 else reversed(order):
                if not turn.samples or turn.best <= limit:
                    turn.run(min_time)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(turn.samples), turn.number, turn.faults) for name, turn in turns.items()}


def relative_error(outputs: Iterable[Tensor], truth: Iterable[Tensor]) -> float:
    """The largest ‖out - truth‖ / ‖truth‖ of the pairs; infinite for a wrong shape or a non-finite value."""
    worst = 0.0
    for out, want in zip(outputs, truth, strict=True):
        if out.shape != want.shape:
            return math.inf
        wide = want.double()
        norm = float(wide.norm())
        error = float((out.double() - wide).norm())
        if not math.isfinite(error):
            return math.inf
        worst = max(worst, error / norm if norm else error)
    return worst


def check(name: str, outputs: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float | None = None) -> float:
    """The relative error of ``outputs``, if it is within the tolerance of their dtype.

    Raises:
        WrongResult: if it is not.
    """
    error = relative_error(outputs, truth)
    limit = TOLERANCE[outputs[0].dtype] if tolerance is None else tolerance
    if not error <= limit:
        raise WrongResult(f"{name}: relative error {error:.3g} against float64 truth, allowed {limit:.3g}; not timed")
    return error


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Entry:
    """One way to compute an operator, with the inputs in the form that suits it best, made outside the timing.

    ``weights`` makes its own weights of the operator's; ``gradient`` an output gradient in its own channel order;
    ``output`` and ``weight_grads`` undo both for the comparison with the truth.
    """

    name: str
    layout: Layout
    forward: Callable[[Tensor, Sequence[Tensor]], Tensor]
    weights: Callable[[Sequence[Tensor]], Sequence[Tensor]] = _same
    gradient: Callable[[Tensor], Tensor] = _same
    output: Callable[[Tensor], Tensor] = _same
    weight_grads: Callable[[Sequence[Tensor]], Sequence[Tensor]] = _same
    ours: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.layout}"

    def call(self, kind: str, x: Tensor, weights: Sequence[Tensor], g: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """A call of pass ``kind`` on copies of the operator's inputs in this entry's own form and layout."""
        if kind not in PASSES:
            raise ValueError(f"pass must be one of {', '.join(PASSES)}; got {kind!r}")
        fmt = torch.channels_last if self.layout == "nhwc" else torch.contiguous_format

        def own(t: Tensor, grad: bool) -> Tensor:
            form = fmt if t.dim() == 4 else torch.contiguous_format
            return t.detach().clone().contiguous(memory_format=form).requires_grad_(grad)

        forward = self.forward
        x = own(x, kind in ("grad_x", "step"))
        ws = [own(w, kind in ("grad_w", "step")) for w in self.weights(weights)]
        if kind == "forward":

            def run_forward() -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return (forward(x, ws),)

            return run_forward
        g = own(self.gradient(g), False)
        wrt = {"grad_x": [x], "grad_w": ws, "step": [x, *ws]}[kind]
        if kind == "step":
            return lambda: torch.autograd.grad(forward(x, ws), wrt, g)
        y = forward(x, ws)
        return lambda: torch.autograd.grad(y, wrt, g, retain_graph=True)

    def results(self, kind: str, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The outputs of a call as the operator would give them: y, dx, dw, or dx and dw."""
        if kind == "forward":
            return [self.output(outputs[0])]
        if kind == "grad_x":
            return list(outputs)
        if kind == "grad_w":
            return list(self.weight_grads(outputs))
        return [outputs[0], *self.weight_grads(outputs[1:])]


@dataclass(frozen=True)
class Result:
    """Times of one pass; ``refused`` has the candidates that are wrong or cannot run, with the reason."""

    kind: str
    timings: dict[str, Timing]
    errors: dict[str, float]
    refused: dict[str, str]
    ours: tuple[str, ...]

    def best(self, layout: Layout | None = None, stat: str = "min") -> str:
        """The fastest candidate that is not ours, in any layout or in one."""
        names = [n for n in self.timings if n not in self.ours and (layout is None or n.endswith(" " + layout))]
        if not names:
            raise ValueError(f"no baseline was timed for {self.kind}: {self.refused}")
        return min(names, key=lambda n: getattr(self.timings[n], stat))

    def ratio(self, ours: str, layout: Layout | None = None, stat: str = "min") -> float:
        """How many times faster ``ours`` is than the fastest of the others, in any layout or in one."""
        seconds: float = getattr(self.timings[self.best(layout, stat)], stat)
        return seconds / float(getattr(self.timings[ours], stat))


def contest(
    entries: Sequence[Entry],
    kind: str,
    x: Tensor,
    weights: Sequence[Tensor],
    g: Tensor,
    truth: Sequence[Tensor],
    *,
    rounds: int = 5,
    min_time: float = 0.05,
    give_up: float = 8.0,
    also: Sequence[Entry] = (),
) -> Result:
    """Check every entry against the float64 truth of pass ``kind``, then time those that are right.

    ``also``: other functions of a known price, timed in the same turns and not compared.

    Raises:
        WrongResult: if one of ours is wrong. A baseline that is wrong or fails is left out and named in the result.
    """
    calls: dict[str, Callable[[], object] | Candidate] = {}
    errors, refused = {}, {}
    for entry in [*entries, *also]:
        try:
            call = entry.call(kind, x, weights, g)
            start = time.perf_counter()
            outputs = call()
            seen = time.perf_counter() - start
            if entry not in also:
                errors[entry.label] = check(f"{entry.label}, {kind}", entry.results(kind, outputs), truth)
            if seen >= _FIRST_CALL_SECONDS:
                # Loading, planning and compiling are paid once: a first call alone would make a candidate hopeless.
                start = time.perf_counter()
                call()
                seen = time.perf_counter() - start
        except Exception as reason:
            if entry.ours:
                raise
            refused[entry.label] = f"{type(reason).__name__}: {reason}".splitlines()[0]
            continue
        calls[entry.label] = Candidate(call, seen=seen)
    timings = interleaved(calls, rounds=rounds, min_time=min_time, give_up=give_up)
    return Result(kind, timings, errors, refused, tuple(e.label for e in entries if e.ours))


def has_compiler() -> bool:
    """Whether torch.compile can build for the CPU: it needs a C++ compiler at run time."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++"))


def compiled(entry: Entry) -> Entry:
    """The entry through torch.compile with its default mode, for static shapes."""
    forward = torch.compile(entry.forward, dynamic=False)
    return Entry(
        f"compiled {entry.name}",
        entry.layout,
        forward,
        entry.weights,
        entry.gradient,
        entry.output,
        entry.weight_grads,
    )


def baselines(op: str, **values: Any) -> list[Entry]:
    """The fair list for operator ``op``: what a good user of PyTorch would run instead, in both layouts.

    ``values`` go to ``entries`` in the operator's ``baselines`` module.
    """
    entries: list[Entry] = importlib.import_module(f"lightkernels.ops.{op}.baselines").entries(**values)
    return entries
