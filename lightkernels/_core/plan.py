"""From the shapes of a call to what will run it, remembered."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from lightkernels._core import backends as _backends

LIMIT = 4096


class Plan:
    """A validated call: its Spec, the schema arguments, the backend and that backend's three functions."""

    __slots__ = ("args", "bwd_w", "bwd_x", "choice", "fwd", "name", "spec")

    def __init__(self, spec: Any, args: tuple[Any, ...], choice: _backends.Choice) -> None:
        self.spec = spec
        self.args = args
        self.choice = choice
        self.name = choice.backend.name
        self.fwd: Callable[..., Tensor] = choice.backend.function("fwd")
        self.bwd_x: Callable[..., Tensor] = choice.backend.function("bwd_x")
        self.bwd_w: Callable[..., Tensor] = choice.backend.function("bwd_w")


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
