"""What is checked: one operator on one backend; and the table of kinds."""

import importlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightkernels._core.backends import Backend
from lightkernels.testing import Case, Sample

ALL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIDE = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)
BOTH = ("nchw", "nhwc")
OPS = "lightkernels.ops"
# Backends made of PyTorch's own calls: their rounding and their sums over threads are PyTorch's.
BORROWED = ("torch", "reference")


@dataclass(frozen=True)
class Target:
    """One operator on one backend."""

    package: str
    backend: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        return self.package.rpartition(".")[2]

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(self.package)

    @property
    def op(self) -> Any:
        return self.module.OP

    @property
    def public(self) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] = getattr(self.module, self.name)
        return function

    @property
    def reference(self) -> Callable[..., Tensor]:
        return importlib.import_module(f"{self.package}.reference").forward

    @property
    def cases(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.cases")

    def case(self, name: str) -> Case:
        return next(c for c in self.cases.CASES if c.name == name)

    def tagged(self, tag: str) -> list[Case]:
        return [c for c in self.cases.CASES if tag in c.tags]

    def __call__(self, sample: Sample) -> Tensor:
        return self.public(*sample.args, **sample.kwargs, backend=self.backend)

    def truth(self, sample: Sample) -> Tensor:
        return self.reference(*sample.args, **sample.kwargs)

    def function(self, sample: Sample) -> Callable[..., Tensor]:
        """The call as a function of its floating-point tensors, plain enough for torch.compile to trace."""
        public, kwargs = self.public, {**sample.kwargs, "backend": self.backend}
        places, tree = tree_flatten(sample.args)
        floating = [isinstance(p, Tensor) and p.is_floating_point() for p in places]

        def call(*tensors: Tensor) -> Tensor:
            fresh = iter(tensors)
            leaves = [next(fresh) if f else p for f, p in zip(floating, places, strict=True)]
            return public(*tree_unflatten(leaves, tree), **kwargs)

        return call

    def truth_function(self, sample: Sample) -> Callable[..., Tensor]:
        return lambda *tensors: self.truth(sample.replace(tensors))

    def build(self, case: Case, dtype: torch.dtype, layout: str = "nchw", seed: int = 0, **kwargs: Any) -> Sample:
        return case.build(seed, dtype, layout, self.device, **kwargs)


def packages(within: str = OPS, bilinear: bool = False) -> list[str]:
    """Every operator's package: the attributes of ``within`` that hold an OP; ``bilinear``: those of such ops alone."""
    names = vars(importlib.import_module(within)).values()
    found = [m for m in names if isinstance(m, ModuleType) and hasattr(m, "OP")]
    return sorted(m.__name__ for m in found if m.OP.bilinear or not bilinear)


def targets(within: str = OPS, device: str = "cpu") -> list[Target]:
    """Every operator on every backend that runs its first case here."""
    found = []
    for package in packages(within):
        base = Target(package, "reference", device)
        for backend in base.op.backends:
            if why_not(Target(package, backend, device), base.cases.CASES[0]) is None:
                found.append(Target(package, backend, device))
    return found


def why_not(target: Target, case: Case, dtype: torch.dtype = torch.float32, layout: str = "nchw") -> str | None:
    from lightkernels import BackendUnavailable

    try:
        target(target.build(case, dtype, layout))
    except BackendUnavailable as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Kind:
    """One kind of check and over what it is generated."""

    name: str
    check: Callable[..., None]
    select: Callable[[Case], bool]
    dtypes: tuple[torch.dtype, ...]
    layouts: tuple[str, ...]
    backends: Callable[[str], bool]
    marks: tuple[Any, ...]
    fused: int
    turns: bool

    def cases(self, target: Target) -> list[Case]:
        found = [c for c in target.cases.CASES if "bench" not in c.tags and self.select(c)]
        return found if target.op.bilinear else found[: self.fused]

    def forms(self, cases: list[Case]) -> Iterator[tuple[Case, torch.dtype, str]]:
        """These cases in every dtype and layout; if layouts take turns, and there are enough cases, in one layout."""
        for i, case in enumerate(cases):
            one = self.turns and len(cases) >= len(self.layouts)
            for dtype in self.dtypes:
                for layout in [self.layouts[i % len(self.layouts)]] if one else self.layouts:
                    yield case, dtype, layout


@dataclass
class Theme:
    """The kinds of one file of checks.

    ``brief``: where a native backend runs a kind, those made of PyTorch's own calls run its first case alone.
    """

    kinds: list[Kind] = field(default_factory=list)
    only: tuple[str, ...] = ()
    brief: bool = False

    def kind(
        self,
        *,
        tag: str | None = None,
        first: int | None = None,
        dtypes: tuple[torch.dtype, ...] = (torch.float32,),
        layouts: tuple[str, ...] = ("nchw",),
        native: bool = False,
        only: tuple[str, ...] = (),
        marks: tuple[Any, ...] = (),
        fused: int = 0,
        turns: bool = False,
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register a check: over cases of ``tag`` (else all but the bulky), ``first`` so many of them.

        ``native`` leaves out the backends that are made of PyTorch's own calls; ``only`` names the backends;
        ``fused`` is how many cases of an operator that is not bilinear. ``turns``: layouts take turns over the cases.
        That is for what knows a call as a schema and strides, and for what a quicker kind runs in every layout.
        """

        only = only or self.only

        def register(check: Callable[..., None]) -> Callable[..., None]:
            def select(case: Case) -> bool:
                return "bulk" not in case.tags if tag is None else tag in case.tags

            kind = Kind(
                check.__name__,
                check,
                select,
                dtypes,
                layouts,
                lambda backend: backend in only if only else not (native and backend in BORROWED),
                marks,
                fused,
                turns,
            )
            if first is not None:
                kind = _first(kind, first)
            self.kinds.append(kind)
            return check

        return register


def _first(kind: Kind, count: int) -> Kind:
    class Few(Kind):
        def cases(self, target: Target) -> list[Case]:
            return Kind.cases(self, target)[:count]

    return Few(**vars(kind))


@dataclass(frozen=True)
class Check:
    """One generated test."""

    kind: Kind
    target: Target
    case: Case
    dtype: torch.dtype
    layout: str

    @property
    def id(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        device = "" if self.target.device == "cpu" else f"-{self.target.device}"
        return (
            f"{self.target.name}-{self.target.backend}{device}-{self.kind.name}-{self.case.name}-{dtype}-{self.layout}"
        )

    @property
    def seed(self) -> int:
        return zlib.crc32(self.id.encode())

    def __call__(self) -> None:
        from lightkernels import BackendUnavailable

        try:
            self.kind.check(self.target, self.case, self.dtype, self.layout, self.seed)
        except BackendUnavailable as error:
            pytest.skip(str(error))


def generate(theme: Theme, where: list[Target]) -> Iterator[Check]:
    natives = {(t.package, t.device, t.backend) for t in where if theme.brief and t.backend not in BORROWED}
    for kind in theme.kinds:
        elsewhere = {(package, device) for package, device, backend in natives if kind.backends(backend)}
        for target in where:
            if kind.backends(target.backend):
                few = target.backend in BORROWED and (target.package, target.device) in elsewhere
                for case, dtype, layout in kind.forms(kind.cases(target)[: 1 if few else None]):
                    yield Check(kind, target, case, dtype, layout)


@dataclass(frozen=True)
class Planted(Backend):
    """A backend whose module is given; for tests that register a wrong one."""

    code: Any = None

    @property
    def module(self) -> Any:
        return self.code


@contextmanager
def planted(target: Target, code: Any) -> Iterator[None]:
    """Inside, the target's backend is ``code``: an object with why_not, fwd, bwd_x and bwd_w."""
    op = target.op
    kept = op.backends[target.backend]
    op.backends[target.backend] = Planted(target.backend, target.package, code)
    op._memo.clear()
    try:
        yield
    finally:
        op.backends[target.backend] = kept
        op._memo.clear()
