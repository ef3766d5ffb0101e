"""From the shapes of a call to what will run it, remembered."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from lightkernels._core import backends as _backends

LIMIT = 4096


class Plan:
    """A validated call: its Spec, the schema arguments, and the function of each pass with its backend's name.

    ``apart``: whether ``fwd`` also takes several weights as they are, in a tuple.
    """

    __slots__ = ("apart", "args", "bwd_w", "bwd_x", "fwd", "names", "spec")

    def __init__(self, spec: Any, args: tuple[Any, ...], chosen: Mapping[str, _backends.Choice]) -> None:
        self.spec = spec
        self.args = args
        self.names = {kind: choice.backend.name for kind, choice in chosen.items()}
        self.apart = chosen["fwd"].backend.takes_apart
        self.fwd: Callable[..., Tensor] = chosen["fwd"].backend.function("fwd")
        self.bwd_x: Callable[..., Tensor] = chosen["bwd_x"].backend.function("bwd_x")
        self.bwd_w: Callable[..., Tensor] = chosen["bwd_w"].backend.function("bwd_w")


class Memo:
    """Plans by key. Emptied when full: a training loop refills it in one step."""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Plan] = {}
        self.get = self._plans.get

    def put(self, key: Hashable, plan: Plan) -> Plan:
        if len(self._plans) >= LIMIT:
            self._plans.clear()
        self._plans[key] = plan
        return plan

    def clear(self) -> None:
        self._plans.clear()

    def __len__(self) -> int:
        return len(self._plans)
