"""What runs and times the calls: a CUDA device, or a stand-in that lets the whole suite be rehearsed without one.

Every call is captured in a CUDA graph, ours and the others alike, so that launch overhead meets none. A graph holds
several calls on different buffers, together several times the L2 cache: each call finds its inputs cold.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

COLD = 4  # buffers in turn are this many times the L2 cache
MIN_CALLS = 10
Call = Callable[[], Any]


@dataclass
class Replay:
    """A captured series of calls; ``run`` replays it and returns seconds for one call."""

    run: Callable[[], float]
    calls: int
    graph: bool = True
    keep: Any = None
    samples: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        ordered = sorted(self.samples)
        quarter = len(ordered) // 4
        median = statistics.median(ordered)
        return {
            "median": median,
            "min": ordered[0],
            "spread": round((ordered[-1 - quarter] - ordered[quarter]) / median, 4),
            "samples": len(ordered),
            "calls": self.calls,
            "graph": self.graph,
        }


class Device(Protocol):
    name: str
    kind: str
    dry: bool
    l2: int

    def on(self) -> AbstractContextManager[Any]: ...
    def capture(self, make: Callable[[], Call], footprint: int) -> Replay: ...
    def seconds(self, call: Call) -> float: ...
    def peak_bytes(self, call: Call) -> int: ...
    def free(self) -> None: ...


def copies(footprint: int, l2: int) -> int:
    """How many sets of buffers one graph goes round, so that none is in the cache when its turn comes."""
    return max(1, math.ceil(COLD * l2 / max(footprint, 1)))


class Cuda:
    """The current CUDA device; everything, also what autograd records, runs on one stream of its own."""

    kind = "cuda"
    dry = False

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.name = properties.name
        self.l2 = int(getattr(properties, "L2_cache_size", 0)) or 60 * 2**20
        self.stream = torch.cuda.Stream()

    def on(self) -> AbstractContextManager[Any]:
        """Autograd runs a backward on the stream of its forward: all of a measurement belongs on one stream."""
        return torch.cuda.stream(self.stream)

    def seconds(self, call: Call) -> float:
        """One call between two events, after a warm one."""
        with self.on():
            call()
            return self._events(call)

    def _events(self, call: Call) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3

    def capture(self, make: Callable[[], Call], footprint: int) -> Replay:
        with self.on():
            first = make()
            for _ in range(3):
                first()
            estimate = min(self._events(first) for _ in range(2))
        sets = min(copies(footprint, self.l2), max(1, int(0.02 / max(estimate, 1e-7))))
        count = sets if estimate > 2e-3 else max(sets, min(MIN_CALLS, int(0.02 / max(estimate, 1e-7)) + 1))
        with self.on():
            calls = [first, *(make() for _ in range(sets - 1))]
            for call in calls[1:]:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        kept: list[Any] = [None] * sets
        with torch.cuda.graph(graph, stream=self.stream):
            for i in range(count):
                kept[i % sets] = calls[i % sets]()
        torch.cuda.synchronize()

        def run() -> float:
            with self.on():
                return self._events(graph.replay) / count

        run()
        return Replay(run, count, keep=(graph, kept, calls))

    def peak_bytes(self, call: Call) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with self.on():
            call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Rehearsal:
    """Runs every call once on the CPU and invents its time, the same in every run."""

    kind = "cpu"
    dry = True
    name = "rehearsal on the CPU, invented times"
    l2 = 2**12

    def __init__(self) -> None:
        self.captured = 0

    def on(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def seconds(self, call: Call) -> float:
        call()
        return 1e-4

    def capture(self, make: Callable[[], Call], footprint: int) -> Replay:
        make()()
        self.captured += 1
        invented = 1e-6 * (1 + zlib.crc32(str(self.captured).encode()) % 100)
        return Replay(lambda: invented, copies(footprint, self.l2))

    def peak_bytes(self, call: Call) -> int:
        call()
        return 1

    def free(self) -> None:
        pass


def take_turns(replays: dict[str, Replay], rounds: int = 20, each: int = 5, limit: float = 0.1) -> None:
    """Samples for every candidate in turn; at most ``limit`` seconds for one, at least three samples."""
    for i in range(rounds):
        names: Sequence[str] = list(replays) if i % 2 == 0 else list(reversed(replays))
        for name in names:
            replay = replays[name]
            for _ in range(each):
                spent = sum(replay.samples) * replay.calls
                if len(replay.samples) >= 3 and spent > limit:
                    break
                replay.samples.append(replay.run())
