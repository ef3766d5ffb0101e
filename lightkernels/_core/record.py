"""Notes the operators' calls that some code makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from lightkernels._core import backends


class Seen(Exception):
    """The call is noted; it need not run."""


class Recorder(TorchDispatchMode):
    """Inside, ``calls`` gets (operator, arguments, backend asked for) of every forward of ``ops``.

    Args:
        ops: operators, such as ``lightkernels.ops.rsdc2d.OP``.
        run: False ends the first call with ``Seen`` instead of running it.
    """

    def __init__(self, ops: Iterable[Any], run: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ops = {op.ops[""]: op for op in ops}
        self._run = run
        self.calls: list[tuple[Any, tuple[Any, ...], str]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the compiler is imported, a second for what nobody compiles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._ops:
            self.calls.append((self._ops[func], args, backends.wanted(kwargs.get("backend"))))
            if not self._run:
                raise Seen
        return func(*args, **kwargs)
