"""Another implementation's state dict, by the names that the second pass of MLDN uses."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .mldn_plan import Slot, Slots

Name = str | Callable[[Mapping[str, Tensor]], Tensor]


def weights_from(
    state: Mapping[str, Tensor], slots: Slots, names: Callable[[str], Name], ignored: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The tensors of another network's state dict under the names used here.

    Args:
        state: the state dict.
        slots: of `net_slots` or `block_slots`.
        names: slot name -> key of `state`; a key with "{p}" is stacked over the paths; or a function of `state`.
            A tensor of the right number of elements and another shape is viewed as the slot's.
        ignored: endings of keys that need not be read, such as batch counters.
    """
    used: set[str] = set()

    class Watched(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            used.add(key)
            return super().__getitem__(key)

    watched = Watched(state)

    def read(name: str, slot: Slot) -> Tensor:
        key = names(name)
        if callable(key):
            value = key(watched)
        elif "{p}" in key:
            value = torch.stack([watched[key.format(p=p)] for p in range(slot.shape[0])])
        else:
            value = watched[key]
        assert value.numel() == slot.size, f"{name} should be {slot.shape}, {key} is {tuple(value.shape)}"
        value = value.reshape(slot.shape)
        return value.double() if slot.kind == "mask" else value

    found = {name: read(name, slot) for name, slot in slots.items()}
    left = {key for key in state if key not in used and not key.endswith(ignored or ("\0",))}
    assert not left, f"never read: {sorted(left)}"
    return found


def group_mask(mask: Tensor, paths: int, groups: int) -> Tensor:
    """(paths, groups, inputs) of a learned group convolution's full mask (paths · outputs, inputs)."""
    rows = mask.reshape(paths, -1, groups, mask.shape[1])
    assert bool((rows == rows[:, :1]).all()), "the mask differs inside a group"
    return rows[:, 0]
