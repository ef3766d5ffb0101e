"""Compresses ResNet20 on the handwritten digits, and says what the search was worth.

    python benchmarks/compress_digits.py --seeds 0 1 2

For each seed: the uncompressed network, the compressed one and random architectures of its cost are trained for as many
epochs. Goals: search, derivation and fine-tuning in under ten minutes; PCR (the paper's scope) of 2.4 or more; accuracy
within one point of the uncompressed network's, and not below the mean of the random architectures'. Results are added
to ``benchmarks/results/compress-digits.json``; a goal that was missed is written down as missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from machine import describe

from lightkernels import compress, models
from lightkernels._core import measure
from lightkernels.compress.digits import loaders
from lightkernels.train.files import atomic_write

PCR = 2.4


def one(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = {"name": "cifar_resnet20", "num_classes": 10}
    model = models.create_model("cifar_resnet20", num_classes=10)
    train, test = loaders(options.batch, seed)
    settings = compress.preset(
        "recommended", epochs=options.epochs, finetune_epochs=options.finetune_epochs, lr=options.lr,
        gate_every=options.gate_every, gate_dtype=options.gate_dtype,
    )  # fmt: skip
    found = compress.compress(
        model, train, operators=options.operators, settings=settings, target_params=f"{100 / PCR:.3f}%", scope="paper",
        evaluate=test, out=options.out / f"seed-{seed}", baselines=options.baselines, network=network, seed=seed,
        train_original=options.baselines > 0, resume=options.resume,
    )  # fmt: skip
    random = [b.accuracy for b in found.baselines if b.accuracy is not None]
    seconds = sum(record["seconds"] for record in [*found.history, *found.tuning])
    comparison = {}
    if random:
        comparison["within one point of uncompressed"] = found.accuracy >= found.accuracy_before - 0.01
        comparison["not below the random mean"] = found.accuracy >= statistics.fmean(random)
    return {
        "seed": seed,
        "accuracy_uncompressed": found.accuracy_before if random else None,
        "accuracy": found.accuracy,
        "accuracy_random": random,
        "pcr": found.pcr,
        "fcr": found.fcr,
        "undecided": found.undecided,
        "flips": sum(record["flips"] for record in found.history),
        "settled": found.history[-1]["settled"],
        "operators": found.architecture.operators,
        "latency": found.seconds,
        "seconds_search_and_finetune": seconds,
        "goals": {
            "under ten minutes": seconds < 600,
            f"PCR at least {PCR}": found.pcr >= PCR,
            **comparison,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--operators", default="SOP8")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--finetune-epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--gate-every", type=int, default=1, help="2: a layer's neighbours run in every other step")
    parser.add_argument("--gate-dtype", choices=("same", "auto", "bfloat16"), default="same", help="of neighbours")
    parser.add_argument("--baselines", type=int, default=3, help="0: the search alone, without any comparison")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/compress-digits"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "compress-digits.json")
    options = parser.parse_args()
    measure.steady_memory(huge=True)
    kept = {"operators", "epochs", "finetune_epochs", "lr", "batch", "gate_every", "gate_dtype", "baselines"}
    settings = {name: value for name, value in vars(options).items() if name in kept}
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        rows.append(one(seed, options))
        print(json.dumps(rows[-1], indent=2))
        text = json.dumps({"machine": describe(), "settings": settings, "seeds": rows}, indent=2)
        with atomic_write(options.results) as temporary:
            temporary.write_text(text + "\n")


if __name__ == "__main__":
    main()
