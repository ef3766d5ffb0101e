"""The selection operator: several operators in one layer's place, of which the signs of a few gates choose one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lightkernels._core.spec import fail_type, require
from lightkernels.compress import gate
from lightkernels.compress.channel_norm import in_planes
from lightkernels.compress.operators import build_operator, kind_of
from lightkernels.compress.operators_layers import DepthwiseConv2d
from lightkernels.compress.operators_modules import Features, Gradient, Operator
from lightkernels.compress.operators_passes import Low, Own, Value, product, refuse_second, running_as
from lightkernels.functional import multi_dwconv2d

_LEAST = 0.05


class Selection(nn.Module):
    r"""N operators in one layer's place and ``m = ceil(log2 N)`` gates whose signs spell the code of the active one.

    .. math:: y = \sum_i OH_i(\alpha)\, op_i(x), \qquad
        \frac{dL}{d\alpha_j} = A'(\alpha_j) \langle dL/dy,\; op_{[b_j = 1]}(x) - op_{[b_j = 0]}(x) \rangle

    with one 1 in OH, and the operators whose codes differ from the current one in bit j alone. Only the active
    operator runs in forward and has a graph; its neighbours run within backward, without one, on the statistics of the
    batch, and leave their running statistics alone. Idle operators' parameters have no gradient: None, not zero.

    Args:
        names: the operators, in the order of their codes. With the cheapest first, every bit that falls from 1 to 0
            makes the layer cheaper, which leaves the cost without local minima.
        doubled: which own two codes where N is no power of two: ``"first"``, ``"last"`` or their names.
        affine: of the operators' last norms.
        generator: draws the gates, normal with standard deviation 0.1.

    Parameters: ``alpha`` ``[m]``, the gates, float32 also where the module is 16-bit; ``branches.<i>...``. All else,
    the schedule, `forced` and `frozen`, is not in the state dict.

    Attributes: ``names``, ``branches``, ``codes`` (code to index, ``alpha[0]`` the highest bit), ``t``, ``k``;
    ``forced``, None or the index of an operator that is active whatever the gates say; ``frozen``, True for gates that
    choose but learn no more; ``share``, the part of the batch, its first images, that the neighbours see: 1.0 gives the
    gradient above, less an estimate of it, scaled up, for as much less time; ``turn``, False for steps in which no
    neighbour runs and their scalar products of the last step with True, if any and of this code, are used again;
    ``dtype``, None or torch.bfloat16 for the wider convolutions of neighbours of float32 on the CPU.

    With ``DistributedDataParallel`` pass ``find_unused_parameters=True``. Second derivatives are refused.

    Raises TypeError and ValueError at construction for arguments that fit no layer.

    Equivalent to: ``selection.branches[selection.index()](x)``

    Source: Diao et al., Sensors 2021, 21, 3464, Equations 3 to 7; made total for every N, see docs/compress.md.

    >>> import torch
    >>> from lightkernels.compress.selection import Selection
    >>> layer, x = Selection(("N_3x3_4", "Sep_3x3", "N_3x3"), 8, 8), torch.randn(2, 8, 6, 6)
    >>> layer(x).sum().backward()
    >>> layer.codes, layer.alpha.grad.shape
    ((0, 0, 1, 2), torch.Size([2]))
    """

    _changes: Tensor
    _masks: Tensor

    def __init__(
        self,
        names: Sequence[str],
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        doubled: gate.Doubled = "first",
        affine: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(names, str) or not isinstance(names, Sequence):
            fail_type("Selection", "names", "be a sequence of operators' names", names)
        require(len(names) > 0, "Selection", "names", "name at least one operator", list(names))
        require(len(set(names)) == len(names), "Selection", "names", "name no operator twice", list(names))
        self.names = tuple(names)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.branches = nn.ModuleList(
            build_operator(name, in_channels, out_channels, stride, affine=affine, device=device, dtype=dtype)
            for name in self.names
        )
        self.codes = gate.assign(self.names, doubled)
        self._random = tuple(kind_of(name).random for name in self.names)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        drawn = torch.randn(gate.bits_for(len(names)), generator=generator, device="cpu", dtype=wide)
        self.alpha = nn.Parameter((0.1 * drawn).to(device or torch.get_default_device()))
        self.forced: int | None = None
        self.frozen = False
        self.share = 1.0
        self.turn = True
        self.dtype: torch.dtype | None = None
        self.set_schedule(0, 1)
        self._read: tuple[Tensor, int, int] | None = None
        self._sloped: tuple[Tensor, int, float, float, Tensor] | None = None
        self._held: tuple[int, bool, Tensor] | None = None
        self._signs: dict[int, Tensor] = {}
        masks = torch.eye(len(names), dtype=wide, device=device)[list(self.codes)]
        changes = masks.new_zeros(len(self.codes), len(self.alpha), len(names))
        for code, others in enumerate(gate.neighbours(self.codes)):
            for j, other in enumerate(others):
                sign = 1.0 if code >> (len(others) - 1 - j) & 1 else -1.0
                changes[code, j, self.codes[code]] += sign
                changes[code, j, other] -= sign
        self.register_buffer("_masks", masks, persistent=False)
        self.register_buffer("_changes", changes, persistent=False)

    # The gates.

    def bits(self) -> tuple[int, ...]:
        """1 for every gate above zero; waits for the device of the gates."""
        return tuple(int(value > 0) for value in self.alpha.tolist())

    def code(self) -> int:
        """The number that the bits spell, ``alpha[0]`` first."""
        if self._read is not None and self._read[0] is self.alpha and self._read[1] == self.alpha._version:
            return self._read[2]
        code = 0
        for bit in self.bits():
            code = 2 * code + bit
        return code

    def index(self) -> int:
        """Of the active operator in `names` and `branches`."""
        return self.codes[self.code()] if self.forced is None else self.forced

    @property
    def name(self) -> str:
        """The active operator's."""
        return self.names[self.index()]

    def set_index(self, index: int) -> None:
        """Makes an operator the active one by the signs of the gates, at least 0.05 from zero, as few as will do."""
        known = isinstance(index, int) and 0 <= index < len(self.names)
        require(known, "Selection.set_index", "index", f"be from 0 to {len(self.names) - 1}", index)
        code, bits = gate.nearest(self.codes, index, self.code()), len(self.alpha)
        signs = [1.0 if code >> (bits - 1 - j) & 1 else -1.0 for j in range(bits)]
        with torch.no_grad():
            self.alpha.copy_(self.alpha.abs().clamp(min=_LEAST) * self.alpha.new_tensor(signs))

    def set_schedule(self, epoch: float, total: float) -> None:
        """The gates' slope of epoch ``epoch`` of ``total``, counted from 0; between epochs fractions do."""
        require(total > 0, "Selection.set_schedule", "total", "be above 0", total)
        known = gate.is_progress(epoch / total)
        require(known, "Selection.set_schedule", "epoch", f"be from 0 to {total}", epoch)
        self.t, self.k = gate.temperature(epoch / total)

    def forget(self) -> None:
        """Drops the scalar products that are kept for steps without a turn."""
        self._held = None

    def slope(self) -> Tensor:
        """``[m]``, the derivative A' at each gate, without graph."""
        known, alpha = self._sloped, self.alpha
        if known is None or known[0] is not alpha or known[1:4] != (alpha._version, self.t, self.k):
            known = self._know_slope(gate.slope(alpha.detach(), self.t, self.k))
        return known[4]

    def _know_slope(self, slope: Tensor) -> tuple[Tensor, int, float, float, Tensor]:
        self._sloped = self.alpha, self.alpha._version, self.t, self.k, slope
        return self._sloped

    def mask(self) -> Tensor:
        """``[N]``, 1 for the active operator and 0 for the others, with the gates' derivative.

        A constant where the operator is forced or the gates are frozen.
        """
        if self.forced is not None:
            return torch.eye(len(self.names), dtype=self.alpha.dtype, device=self.alpha.device)[self.forced]
        code = self.code()
        mask = self._masks[code].to(self.alpha.dtype)
        if self.frozen or not len(self.alpha):
            return mask
        step = (self.alpha - self.alpha.detach()) * self.slope()
        return mask + step @ self._changes[code].to(self.alpha.dtype)

    def changes(self) -> Tensor:
        """``[codes, m, N]``: the mask's derivative by each bit, for every code."""
        return self._changes

    def masked(self, values: Tensor) -> Tensor:
        """The active operator's value of ``[N]`` values, with the gates' derivative: a cost as part of the loss."""
        return (self.mask() * values).sum()

    def prior(self) -> tuple[float, ...]:
        """Each operator's probability if every gate's sign were tossed."""
        return tuple(self.codes.count(i) / len(self.codes) for i in range(len(self.names)))

    def undecided(self, threshold: float = _LEAST) -> bool:
        """Whether a gate is nearer to zero than the threshold."""
        return bool((self.alpha.detach().abs() < threshold).any())

    # The layer.

    def forward(self, x: Tensor) -> Tensor:
        index = self.index()
        branch = self.branches[index]
        if isinstance(branch, Operator):
            x = in_planes(x)
        learns = self.forced is None and not self.frozen and len(self.alpha) > 0 and self.alpha.requires_grad
        if not torch.is_grad_enabled():
            y: Tensor = branch(x)
            return y
        if not learns:
            if isinstance(branch, Operator):
                return branch.active(x, probed=False)[0]
            y = branch(x)
            return y
        code = self.code()
        own = None
        if isinstance(branch, Operator):
            if self.share >= 1 and (self.turn or (self._held is not None and self._held[0] == code)):
                own = Own(self.alpha, self.slope() * self._own_signs(code))
            y, features = branch.active(x, own, self.turn)
            if y is x or y._is_view() or any(y is feature for feature in features):
                y = y.clone()
        else:
            # What follows may change the output in place, and nobody but us knows what it was.
            features = (branch(x),)
            y = features[0].clone()
        counted = own is not None and own.taken
        kept = [t.detach() for t in ((x,) if counted else (x, *features))] if self.turn else []
        args = (self, code, counted, y, self.alpha, *kept)
        selected: Tensor = _Select.apply(*args)  # type: ignore[no-untyped-call]
        return selected

    def _own_signs(self, code: int) -> Tensor:
        """``[m]``, by bit, 1 or -1, as the active operator counts in its product; 0 where it is its own neighbour."""
        known = self._signs.get(code)
        if known is None or known.device != self.alpha.device or known.dtype != self.alpha.dtype:
            known = self._changes[code][:, self.codes[code]].to(self.alpha)
            self._signs[code] = known
        return known

    def _products(self, code: int, counted: bool, x: Tensor, features: Features, grad: Gradient) -> Tensor:
        """``[m]``: by bit, the scalar product of the gradient and op[bit = 1](x) - op[bit = 0](x).

        `counted`: the active operator's part is not in it.
        """
        active, others = self.codes[code], gate.neighbours(self.codes)[code]
        images = max(1, round(self.share * len(x)))
        if images < len(x):
            scale = len(x) / images
            x, features, grad = x[:images], tuple(f[:images] for f in features), Gradient(grad.g[:images])
        else:
            scale = 1.0
        wanted = sorted(set(others) - {active})
        values: dict[int, Value] = {}
        if not counted:
            branch = self.branches[active]
            with _Unchanged(branch, False, x):
                if isinstance(branch, Operator):
                    values[active] = branch.probe(features, grad)
                else:
                    values[active] = product(features[0], grad.g)
        branches = [self.branches[i] for i in wanted]
        low = None if self.dtype is None else Low(self.dtype)
        for i, other, first in zip(wanted, branches, _shared_entries(branches, x), strict=True):
            with _Unchanged(other, self._random[i], x, low):
                if isinstance(other, Operator):
                    values[i] = other.value(x, grad, first)
                else:
                    values[i] = product(other(x), grad.g)
        own, found = values.get(active, 0.0), []
        for j, other_index in enumerate(others):
            change = 0.0 if other_index == active else scale * (own - values[other_index])
            found.append(change if code >> (len(others) - 1 - j) & 1 else -change)
        like = self.alpha.detach()
        if all(isinstance(value, float) for value in found):
            return torch.tensor(found, dtype=like.dtype, device=like.device)
        return torch.stack([torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in found])

    def derive(self) -> nn.Module:
        """A copy of the active operator, without gates and without the others."""
        return copy.deepcopy(self.branches[self.index()])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Selection:
        before = self.alpha.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # What is remembered of the gates is of their old type and device.
        self._read, self._sloped, self._held = None, None, None
        if self.alpha.dtype.itemsize < 4:
            self.alpha.data = before.to(self.alpha.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None, "_sloped": None, "_held": None, "_signs": {}}

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, names={self.names}"


class _Select(Function):
    """The output as it is; in backward, the gates' gradient from the neighbours."""

    @staticmethod
    def forward(
        ctx: Any, owner: Selection, code: int, counted: bool, y: Tensor, alpha: Tensor, *kept: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*kept)
        ctx.owner, ctx.code, ctx.counted, ctx.slope = owner, code, counted, owner.slope()
        kind = y.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        # The very tensor: what follows may change it in place, as it may an operator's output.
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        dalpha = None
        refuse_second()
        if ctx.needs_input_grad[4] and not kept:
            held = ctx.owner._held
            known = held is not None and held[:2] == (ctx.code, ctx.counted)
            # Zeros, not None: where processes are joined, all wait for every gate's gradient.
            dalpha = ctx.slope * held[2] if known else torch.zeros_like(ctx.slope)
        elif ctx.needs_input_grad[4]:
            x, *features = kept
            kind, dtype, enabled = ctx.autocast
            same = not enabled and not torch.is_autocast_enabled(kind)
            with contextlib.nullcontext() if same else torch.autocast(kind, dtype, enabled):
                products = ctx.owner._products(ctx.code, ctx.counted, x, tuple(features), Gradient(g))
            ctx.owner._held = ctx.code, ctx.counted, products
            dalpha = ctx.slope * products
        return (None, None, None, g, dalpha, *(None for _ in kept))


class _Unchanged:
    """Norms use the statistics of the batch but do not count it, and the random numbers drawn are given back."""

    def __init__(self, module: nn.Module, random: bool, x: Tensor, low: Low | None = None) -> None:
        self._norms = _counting(module, [])
        self._running = running_as("neighbour", low=low)
        self._random = torch.random.fork_rng([x.device] if x.is_cuda else []) if random else None

    def __enter__(self) -> None:
        for norm in self._norms:
            vars(norm)["track_running_stats"] = False
        if self._random is not None:
            self._random.__enter__()
        self._running.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._running.__exit__(*error)
        if self._random is not None:
            self._random.__exit__(*error)
        for norm in self._norms:
            vars(norm)["track_running_stats"] = True


def _counting(module: nn.Module, found: list[nn.Module]) -> list[nn.Module]:
    """The norms within that would count a batch; faster than ``modules()``, which is asked for at every step."""
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats:
        found.append(module)
    for child in module._modules.values():
        if child is not None:
            _counting(child, found)
    return found


def _shared_entries(branches: Sequence[nn.Module], x: Tensor) -> list[Tensor | None]:
    """For each branch, what its first depthwise layer gives, computed in one pass where there are several."""
    found: list[Tensor | None] = [None] * len(branches)
    by_stride: dict[int, list[tuple[int, DepthwiseConv2d]]] = {}
    for i, branch in enumerate(branches):
        entry = branch.entry if isinstance(branch, Operator) else None
        if entry is not None:
            by_stride.setdefault(entry.stride[0], []).append((i, entry))
    for stride, members in by_stride.items():
        if len(members) > 1:
            weights, dilations = [e.weight for _, e in members], [e.dilation[0] for _, e in members]
            outputs = multi_dwconv2d(x, weights, stride=stride, dilations=dilations).chunk(len(members), 1)
            for (i, _), output in zip(members, outputs, strict=True):
                found[i] = output
    return found


def selections(model: nn.Module) -> dict[str, Selection]:
    """The selection operators of a model by name, in the order of its modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Selection)}


def sync_codes(model: nn.Module | Sequence[Selection]) -> None:
    """Reads all gates of a model at once, so that a device is waited for once a step; call it before the forward.

    Each layer remembers its code, and its gates' slopes, until its gates change through an optimiser or any other
    in-place operation.
    """
    layers = selections(model).values() if isinstance(model, nn.Module) else model
    found = [s for s in layers if len(s.alpha)]
    if not found:
        return
    gates = torch.cat([s.alpha.detach() for s in found])
    bits = gates.gt(0).tolist()
    even = all((s.t, s.k) == (found[0].t, found[0].k) and s.alpha.dtype == gates.dtype for s in found)
    sizes = [len(s.alpha) for s in found]
    slopes = gate.slope(gates, found[0].t, found[0].k).split(sizes) if even else [None] * len(found)
    start = 0
    for selection, slope in zip(found, slopes, strict=True):
        code = 0
        for bit in bits[start : (start := start + len(selection.alpha))]:
            code = 2 * code + bit
        selection._read = (selection.alpha, selection.alpha._version, code)
        if slope is not None:
            selection._know_slope(slope)
