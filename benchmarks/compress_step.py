"""What a step of the search costs, as a multiple of a plain training step of the uncompressed network.

    python benchmarks/compress_step.py --threads 2
    python benchmarks/compress_step.py --threads 1 --clock processor --codes runs/mine/search.jsonl

ResNet20 and SOP8 unless told. Weights and gates stay where they are, as their rates are zero, but all of a step runs:
both passes, the price, both optimisers. The plain step is the faster one of NCHW and channels_last. Each draw of codes
is one row: the least of the rounds for each way of running, in turn in one process. On a machine that others use, take
processor time and one thread. "last" is the exact search of the network in channels_last.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe

from lightkernels import compress, models
from lightkernels._core import measure
from lightkernels.train.files import atomic_write

# Settings of the search; "frozen" runs no neighbour.
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "last": {},
    "bfloat16": {"gate_dtype": "auto"},
    "turns": {"gate_every": 2},
    "both": {"gate_every": 2, "gate_dtype": "auto"},
    "frozen": {},
}


def draws(names: list[tuple[str, ...]], options: argparse.Namespace, layers: list[str]) -> list[list[int]]:
    """The operator of each layer: uniformly random, or those of some epochs of a search's log."""
    if options.codes is None:
        source = random.Random(options.seed)
        return [[source.randrange(len(own)) for own in names] for _ in range(options.draws)]
    records = [json.loads(line) for line in options.codes.read_text().splitlines()]
    records = [record["operators"] for record in records if record["phase"] == "search"]
    records = records[:: max(1, len(records) // options.draws)][: options.draws]
    return [[own.index(record[layer]) for own, layer in zip(names, layers, strict=True)] for record in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--operators", default="SOP8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--codes", type=Path, help="a search's log of JSON lines: its codes instead of random ones")
    parser.add_argument("--results", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    measure.steady_memory(2**30, huge=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    clock = time.perf_counter if options.clock == "wall" else time.process_time

    plain = models.create_model(options.model, num_classes=10)
    x, y = torch.randn(options.batch, 3, options.size, options.size), torch.randint(10, (options.batch,))
    net, plan = compress.reconstruct(plain, x[:1], options.operators)
    nets = {"nchw": net, "channels_last": copy.deepcopy(net).to(memory_format=torch.channels_last)}
    layout_of = {name: "channels_last" if name == "last" else "nchw" for name in WAYS}
    searchers = {name: searcher(nets[layout_of[name]], plan, changes) for name, changes in WAYS.items()}
    found = [searchers["exact"].selections, searchers["last"].selections]
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    layouts = {"nchw": (plain, x), "channels_last": (last, x.contiguous(memory_format=torch.channels_last))}
    sgd = {id(m): torch.optim.SGD(m.parameters(), 0.0, momentum=0.9) for m in (plain, last, *nets.values())}

    def train(layout: str) -> Callable[[], None]:
        model, images = layouts[layout]

        def step() -> None:
            sgd[id(model)].zero_grad()
            F.cross_entropy(model(images), y).backward()
            sgd[id(model)].step()

        return step

    def search(name: str) -> Callable[[], None]:
        one, net, (_, images) = searchers[name], nets[layout_of[name]], layouts[layout_of[name]]

        def step() -> None:
            one.start_step()
            loss = F.cross_entropy(net(images), y)
            sgd[id(net)].zero_grad(), one.gate_optimizer.zero_grad()
            (loss + one.penalty()).backward()
            sgd[id(net)].step(), one.gate_optimizer.step()
            one.end_step(loss)

        return step

    def seconds(step: Callable[[], None], steps: int) -> float:
        start = clock()
        for _ in range(steps):
            step()
        return (clock() - start) / steps

    rows = []
    for codes in draws([s.names for s in found[0]], options, [site.name for site in plan.sites]):
        for own in found:
            for selection, index in zip(own, codes, strict=True):
                selection.set_index(index)
        best: dict[str, float] = {}
        for _ in range(options.rounds):
            times = {layout: seconds(train(layout), 1) for layout in layouts}
            for name, changes in WAYS.items():
                searchers[name].start_epoch(0)
                for selection in searchers[name].selections:
                    selection.frozen = name == "frozen"
                times[name] = seconds(search(name), changes.get("gate_every", 1))
            best = {name: min(value, best.get(name, value)) for name, value in times.items()}
        least = min(best[layout] for layout in layouts)
        rows.append({name: best[name] / least for name in WAYS} | {f"{n}_seconds": best[n] for n in layouts})
        print("  ".join(f"{name} {value:.3f}" for name, value in rows[-1].items()), flush=True)
    means = {name: statistics.fmean(row[name] for row in rows) for name in WAYS}
    print("mean  " + "  ".join(f"{name} {value:.3f}" for name, value in means.items()))
    if options.results is not None:
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "results"}
        text = json.dumps({"machine": describe(), "settings": kept, "rows": rows, "means": means}, indent=2)
        with atomic_write(options.results) as temporary:
            temporary.write_text(text + "\n")


def searcher(net: torch.nn.Module, plan: compress.Plan, changes: dict[str, Any]) -> compress.Searcher:
    settings = compress.preset("paper", epochs=8, gate_lr=0.0, gate_weight_decay=0.0, **changes)
    return compress.Searcher(net, plan, settings)


if __name__ == "__main__":
    main()
