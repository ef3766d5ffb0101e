"""Compares a module with the second pass of MLDN: outputs, gradients and running statistics, on shared weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .mldn import block_forward, forward
from .mldn_layers import Run
from .mldn_plan import Block, Net, block_slots, net_slots
from .mldn_state import Name, weights_from


def agree(
    model: nn.Module,
    plan: Block | Net,
    names: Callable[[str], Name],
    x: Tensor,
    *,
    training: bool,
    ignored: tuple[str, ...] = ("num_batches_tracked",),
) -> None:
    """Assert that `model` in float64 is the block or network of `plan`; `names` and `ignored` as in `weights_from`."""
    slots = block_slots(plan) if isinstance(plan, Block) else net_slots(plan)
    model = model.double().train(training)
    # Parameters as they are, so that gradients through the second pass arrive at them; copies of what the model moves.
    state = dict(model.named_parameters()) | {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = weights_from(state, slots, names, ignored)
    ours = model(x)
    if isinstance(plan, Block):
        run = Run(weights, training)
        theirs, moved = block_forward(run, x, plan), run.moved
    else:
        theirs, moved = forward(weights, x, plan, training=training)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max()))
    assert float(theirs.detach().std()) > 1e-6, "outputs that do not vary prove nothing"
    after = weights_from(model.state_dict(), slots, names, ignored)
    for name, slot in slots.items():
        if slot.kind in ("mean", "variance"):
            expected = moved.get(name, weights[name])
            torch.testing.assert_close(after[name], expected, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    wanted = {name: value for name, value in model.named_parameters() if value.requires_grad}
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3), dtype=ours.dtype)
    left = torch.autograd.grad(ours, list(wanted.values()), direction)
    right = torch.autograd.grad(theirs, list(wanted.values()), direction)
    scale = max(float(grad.abs().max()) for grad in right)
    for name, one, other in zip(wanted, left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}")
