"""``lightkernels evaluate CHECKPOINT``."""

from __future__ import annotations

from pathlib import Path

import torch

from lightkernels import use_backend
from lightkernels.cli.terminal import console
from lightkernels.train import checkpoint, digits
from lightkernels.train.loop import predict


def run(path: Path, backend: str, device: str, threads: int) -> int:
    """Prints how many test images a stored network names right, beside what was stored with it."""
    out = console()
    if threads:
        torch.set_num_threads(threads)
    found = checkpoint.load(path)
    if found.data != digits.NAME:
        raise checkpoint.CheckpointError(f"checkpoint: {path} must be trained on {digits.NAME}; got {found.data}.")
    model = found.build().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    test = digits.load()[1].to(device)
    with use_backend(backend):
        right = int((predict(model, test.images).argmax(1) == test.labels).sum())
    out.print(f"{path}: {found.model}, written by lightkernels {found.written_by}", markup=False)
    out.print(f"test accuracy {100 * right / len(test):.2f} % ({right} of {len(test)}), backend {backend}")
    stored = found.results.get("right")
    if isinstance(stored, int):
        out.print(f"when written  {100 * stored / len(test):.2f} % ({stored} of {len(test)})")
    return 0
