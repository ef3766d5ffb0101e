"""Which backend runs a call, that its backward runs there too, and what ``explain`` says of it."""

import threading

import torch
from torch import Tensor

import lightkernels
from checks.target import ALL, BOTH, OPS, Target, Theme
from lightkernels.testing import Case, Sample

THEME = Theme()


class Counting:
    """A backend's functions, counted."""

    def __init__(self, module) -> None:
        self.module = module
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        inner = getattr(self.module, name)
        if name not in ("fwd", "bwd_x", "bwd_w", "bwd", "infer"):
            return inner

        def counted(*args):
            self.calls.append(name)
            return inner(*args)

        return counted


@THEME.kind(tag="core", first=1)
def backward_on_the_forwards_backend(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Whatever is chosen by the time of the backward; double backward too, and through every route."""
    from checks.target import planted

    sample = target.build(case, dtype, layout, seed).requires_grad()
    others = [b for b in target.op.backends if b != target.backend]
    counting = Counting(target.op.backends[target.backend].module)
    with planted(target, counting):
        for other in others:
            free = lambda s: target.public(*s.args, **s.kwargs)  # noqa: E731
            for inner in (free, target):
                counting.calls.clear()
                with lightkernels.use_backend(target.backend):
                    y = inner(sample)
                with lightkernels.use_backend(other):
                    grads = torch.autograd.grad(y.sin().sum(), sample.tensors(), create_graph=True)
                    torch.autograd.grad(sum(g.square().sum() for g in grads), sample.tensors())
                # Forward; two gradients; then six primitives of theirs, all here and none elsewhere.
                if not {"fwd", "bwd_x", "bwd_w"} <= set(counting.calls) or len(counting.calls) < 7:
                    raise AssertionError(f"{target.backend} ran only {counting.calls} while {other} was chosen")


@THEME.kind(tag="core", first=1, fused=99)
def backend_choice(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Argument before context before default; contexts nest; threads have their own."""
    from checks.target import planted

    sample = target.build(case, dtype, layout, seed)
    counting = Counting(target.op.backends[target.backend].module)

    def runs(call) -> bool:
        counting.calls.clear()
        with torch.no_grad():
            call()
        return bool(counting.calls)

    def free() -> Tensor:
        return target.public(*sample.args, **sample.kwargs)

    with planted(target, counting):
        others = [b for b in target.op.backends if b != target.backend and target_runs(target, b, sample)]
        found = {"argument": runs(lambda: target(sample))}
        with lightkernels.use_backend(target.backend):
            found["context"] = runs(free)
            for other in others:
                with lightkernels.use_backend(other):
                    found[f"not inside {other}"] = not runs(free)
                    found[f"argument inside {other}"] = runs(lambda: target(sample))
                found[f"context after {other}"] = runs(free)
                found[f"not by argument {other}"] = not runs(
                    lambda other=other: target.public(*sample.args, **sample.kwargs, backend=other)
                )
        for other in others:
            with lightkernels.use_backend(target.backend):
                seen: list[bool] = []

                def elsewhere(other=other, seen=seen) -> None:
                    with lightkernels.use_backend(other):
                        seen.append(not runs(free))

                worker = threading.Thread(target=elsewhere)
                worker.start()
                worker.join()
                found[f"thread with {other}"] = seen == [True]
                found[f"here after a thread with {other}"] = runs(free)
    if not all(found.values()):
        raise AssertionError(f"{target.backend} chosen wrongly: {[k for k, v in found.items() if not v]}")


def target_runs(target: Target, backend: str, sample: Sample) -> bool:
    try:
        Target(target.package, backend, target.device)(sample)
    except lightkernels.BackendUnavailable:
        return False
    return True


@THEME.kind(layouts=BOTH, dtypes=ALL, only=("reference",), fused=99)
def explained(target: Target, case: Case, dtype: torch.dtype, layout: str, seed: int) -> None:
    """``explain`` names the backend that runs, for every one asked for, and a reason for every one that cannot."""
    if not target.package.startswith(OPS):
        return
    sample = target.build(case, dtype, layout, seed)
    runs = {name: target_runs(target, name, sample) for name in target.op.backends}
    # A tensor without one layout; a kernel of one layout, or of float32 and float64 only.
    one_kind = (layout == "nhwc" or dtype.itemsize == 2) and not target.op.bilinear
    may_copy = min(sample.args[0].shape) <= 1 or one_kind
    for name, here in runs.items():
        told = lightkernels.explain(target.name, *sample.args, **sample.kwargs, backend=name)
        if told.chosen != (name if here else None) or told.asked != name or told.op != target.name:
            raise AssertionError(f"explained as {told}")
        if {n: reason is None for n, reason in told.reasons.items()} != runs:
            raise AssertionError(f"reasons {told.reasons}, but {runs} run the call")
        if told.layout not in BOTH or not (may_copy or told.copies is None) or target.name not in str(told):
            raise AssertionError(f"explained as {told}")
