"""Layers of a model replaced by rule, in a copy, with a report of every layer."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from lightkernels._core.spec import fail_type, require
from lightkernels.nn import _arguments
from lightkernels.nn.multi_depthwise import MultiDepthwiseConv2d
from lightkernels.nn.rsdc import SCOPES, RSDC2d, Scope

# What a rule says of a layer: a layer in its place, why it has to stay, or nothing.
Rule = Callable[[str, nn.Module], "nn.Module | str | None"]


@dataclass(frozen=True)
class Row:
    """What became of one layer; a module that stands in several places has a row for each."""

    name: str
    kind: str
    changed: bool
    why: str


@dataclass(frozen=True)
class Report:
    """Printable; a row for every layer that has no children, or was replaced, or that a rule gave a reason to keep."""

    rows: tuple[Row, ...]

    @property
    def changed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.changed)

    @property
    def kept(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.changed)

    def __str__(self) -> str:
        wide = max((len(row.name) for row in self.rows), default=0)
        kind = max((len(row.kind) for row in self.rows), default=0)
        lines = [f"{len(self.changed)} of {len(self.rows)} layers changed"]
        for row in self.rows:
            mark = "changed" if row.changed else "kept"
            lines.append(f"  {row.name:<{wide}}  {row.kind:<{kind}}  {mark:<7}  {row.why}")
        return "\n".join(lines)


def convert(model: nn.Module, rules: Rule | Sequence[Rule]) -> tuple[nn.Module, Report]:
    """A deep copy of ``model`` with layers replaced, and a report of every layer; the model itself is left as it is.

    Args:
        model: any module. A layer that stands in several places is replaced by one new layer in all of them.
        rules: functions of a layer's name and the layer, which answer with a new layer, with the reason why it has to
            stay (a string), or with None if they have nothing to say. The first answer counts. A rule that raises
            ValueError keeps the layer, with the error as the reason. :func:`lightkernels.nn.rsdc_rule` makes one.

    Returns:
        The new model and a :class:`Report`, printable, with rows of name, kind, changed and why.

    Raises:
        TypeError: for a model or rules of the wrong type, or a rule that answers with something else.

    Equivalent to: ``copy.deepcopy(model)`` with ``rule(name, layer)`` in the place of each layer it answers for

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> new, report = convert(model, rsdc_rule(7, place="center"))
        >>> print(report)
        1 of 2 layers changed
          0  Conv2d  changed  RSDC2d: 9 of 7x7 cells, a set for each layer
          1  ReLU    kept     no rule speaks of it
    """
    if not isinstance(model, nn.Module):
        fail_type("convert", "model", "be an nn.Module", model)
    asked: Sequence[Rule] = (rules,) if callable(rules) else rules
    if not isinstance(asked, Sequence) or not all(callable(rule) for rule in asked):
        fail_type("convert", "rules", "be a rule or a sequence of rules", rules)
    walk = _Walk(asked, copy.deepcopy(model))
    new = walk.visit("", walk.model)
    return new, Report(tuple(walk.rows))


class _Walk:
    """One pass over a model that may be changed."""

    def __init__(self, rules: Sequence[Rule], model: nn.Module) -> None:
        self.rules, self.model = rules, model
        self.rows: list[Row] = []
        # By id of the old layer and of the new one; both are kept, so that no id is given away twice.
        self.answers: dict[int, tuple[nn.Module, nn.Module, str | None]] = {}
        self.owners = Counter(id(p) for layer in model.modules() for p in layer._parameters.values() if p is not None)

    def visit(self, name: str, layer: nn.Module) -> nn.Module:
        """What shall stand in the place of ``layer``: itself, with its children replaced, or a new one."""
        if id(layer) not in self.answers:
            answer = (layer, *self.answer(name, layer))
            self.answers[id(layer)] = self.answers[id(answer[1])] = answer
        old, put, why = self.answers[id(layer)]
        # The branches of a multi-kernel layer hold its weights and are never called.
        inside = {} if isinstance(layer, MultiDepthwiseConv2d) else layer._modules
        children = [(key, child) for key, child in inside.items() if child is not None]
        if put is not old or not children or why is not None:
            self.rows.append(Row(name, type(old).__name__, put is not old, why or "no rule speaks of it"))
        if put is old:
            for key, child in children:
                layer._modules[key] = self.visit(f"{name}.{key}" if name else key, child)
        return put

    def answer(self, name: str, layer: nn.Module) -> tuple[nn.Module, str | None]:
        for rule in self.rules:
            try:
                said = rule(name, layer)
            except ValueError as error:
                return layer, str(error)
            if isinstance(said, str):
                return layer, said
            if isinstance(said, nn.Module):
                if any(self.owners[id(p)] > 1 for p in layer.parameters()):
                    return layer, "it shares a parameter with another layer"
                return said, _summary(said)
            if said is not None:
                fail_type("convert", "rules", "answer with a module, a reason or None", said)
        return layer, None


def _summary(layer: nn.Module) -> str:
    if isinstance(layer, RSDC2d):
        side, whose = layer.kernel_size[0], layer.scope
        return f"{type(layer).__name__}: {layer.taps.shape[1]} of {side}x{side} cells, a set for each {whose}"
    return type(layer).__name__


def rsdc_rule(
    kernel_size: int = 5,
    *,
    names: str = "*",
    sizes: Sequence[int] = (3,),
    place: Literal["random", "center"] = "random",
    scope: Scope | None = None,
    depthwise: bool = False,
    generator: torch.Generator | None = None,
) -> Rule:
    """A rule for :func:`lightkernels.convert`: ``nn.Conv2d`` to :class:`RSDC2d` of a larger window.

    Args:
        kernel_size, place, scope, generator: as of :meth:`RSDC2d.from_conv2d`.
        names: a pattern of the layers' names, such as ``"features.*"``; it has nothing to say of others.
        sizes: the kernel sizes that are converted.
        depthwise: convert depthwise convolutions too.

    It keeps, and says so: subclasses and parametrised convolutions, those with hooks, and kernels of other sizes or
    shapes; ``convert`` keeps what shares a parameter with another layer.

    Raises TypeError and ValueError for arguments that fit no layer.

    Equivalent to: ``lambda name, conv: RSDC2d.from_conv2d(conv, kernel_size)`` for every 3x3 ``nn.Conv2d``

    >>> import torch, lightkernels as lk
    >>> rule = lk.nn.rsdc_rule(names="body.*")
    >>> rule("body.0", torch.nn.Conv2d(3, 8, 1))
    'its kernel is 1x1, not 3x3'
    """
    op = "rsdc_rule"
    side = _arguments.positive_int(op, "kernel_size", kernel_size)
    require(side % 2 == 1, op, "kernel_size", "be odd", side, "an even window has no centre.")
    if not isinstance(names, str):
        fail_type(op, "names", "be a pattern of names", names)
    _arguments.one_of(op, "place", place, ("random", "center"))
    if scope is not None:
        _arguments.one_of(op, "scope", scope, SCOPES)
    sizes = _arguments.int_tuple(op, "sizes", sizes, "a sequence of ints")
    require(len(sizes) > 0, op, "sizes", "name a kernel size", sizes)

    def rule(name: str, layer: nn.Module) -> nn.Module | str | None:
        if not isinstance(layer, nn.Conv2d) or not fnmatchcase(name, names):
            return None
        reason = why_not_plain(layer, sizes, depthwise)
        if reason is not None:
            return reason
        return RSDC2d.from_conv2d(layer, kernel_size, place=place, scope=scope, generator=generator)

    return rule


def why_not_plain(conv: nn.Conv2d, sizes: Sequence[int], depthwise: bool) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, not a plain Conv2d"
    rows, columns = conv.kernel_size
    if rows != columns or rows not in sizes:
        return f"its kernel is {rows}x{columns}, not {' or '.join(f'{k}x{k}' for k in sizes)}"
    if conv.groups > 1 and conv.groups == conv.in_channels and not depthwise:
        return "it is depthwise (depthwise=True converts it)"
    return "it has hooks, which would be lost" if has_hooks(conv) else None


def has_hooks(layer: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, kind) for kind in kinds)
