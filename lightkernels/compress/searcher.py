"""The search itself, apart from any training loop: what to do before and after each step and each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightkernels._core.spec import fail_type, require
from lightkernels.compress.derive import chosen
from lightkernels.compress.plan import Metric, Plan, Target
from lightkernels.compress.selection import Selection, selections, sync_codes
from lightkernels.compress.settings import Settings, checked

_LAM_RANGE = (1e-5, 10.0)
_GAIN = 1.5


@dataclass(frozen=True)
class Epoch:
    """One line of the log. ``flips``: gates that changed their sign, counted step by step."""

    epoch: int
    phase: str
    loss: float
    lam: float
    flips: int
    undecided: int
    params: float
    macs: float
    pcr: float
    fcr: float
    settled: int
    seconds: float
    operators: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Searcher:
    """Keeps gates, schedule, path and objective of a supernet; your loop does the rest.

    For each ``epoch``: ``start_epoch(epoch)``; for each batch ``start_step()``, then backward of your loss plus
    ``penalty()``, then your optimiser of ``weights`` and ``gate_optimizer`` step, then ``end_step(loss)``; last
    ``end_epoch()``, which returns the :class:`Epoch`. ``state_dict()`` is all that a resumed search needs beside the
    model's and the optimisers'.

    Args:
        model: the supernet, without any wrapper of distributed training.
        plan: that of ``reconstruct``.
        target: of ``plan.target``; steers ``lam`` from epoch to epoch, and is met when the gates settle.
        seed: of the random paths of the warm-up; the same in all processes.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, settings: Settings, *, target: Target | None = None, seed: int = 0
    ) -> None:
        if not isinstance(model, nn.Module):
            fail_type("search", "model", "be an nn.Module", model)
        if not isinstance(plan, Plan):
            fail_type("search", "plan", "be the Plan that reconstruct returned", plan)
        if target is not None and not isinstance(target, Target):
            fail_type("search", "target", "be a Target", target, 'plan.target("params", "40%") makes one')
        found = selections(model)
        expected = [site.name for site in plan.sites]
        same = sorted(found) == sorted(expected)
        hint = "reconstruct returns both"
        require(same, "search", "model", f"have selection operators at {expected}", sorted(found), hint)
        settings = checked("search", settings)
        self.model, self.plan, self.settings, self.target = model, plan, settings, target
        self.selections: list[Selection] = [found[name] for name in expected]
        gates = {id(s.alpha) for s in self.selections}
        self.gates: list[nn.Parameter] = [s.alpha for s in self.selections]
        self.weights: list[nn.Parameter] = [p for p in model.parameters() if id(p) not in gates]
        self.gate_optimizer = torch.optim.Adam(self.gates, lr=settings.gate_lr, weight_decay=settings.gate_weight_decay)
        self.gate_schedule = torch.optim.lr_scheduler.StepLR(
            self.gate_optimizer, settings.gate_step, settings.gate_gamma
        )
        self.lam = float(settings.lam)
        self.draw = torch.Generator().manual_seed(seed)
        self.epoch, self.phase, self.settled = 0, "search", 0
        self.turns: list[int] = []
        self.tables = self._tables()
        self._prices = self._tables_by_code()
        self._start_counting()

    def _tables(self) -> list[Tensor]:
        """Each site's costs ``[metrics, options]``; no logarithm of one is infinite."""
        cost = self.settings.cost
        metrics: tuple[Metric, ...] = ("params", "macs") if cost == "paper" else (cost,)
        made = [[] for _ in self.gates]  # type: list[list[Tensor]]
        for metric in metrics:
            rows = self.plan.table(metric, "replaced")
            total = sum(self.plan.replaced_before(metric, "replaced")) or sum(map(max, rows))
            for found, row, gate in zip(made, rows, self.gates, strict=True):
                values = torch.tensor(row, dtype=gate.dtype)
                if self.settings.form == "total":
                    values = values * (len(rows) / total)
                elif min(row) == 0:  # such as skip: the pull to it is finite, 1000 at most
                    values = values + 1e-3 * max(1.0, max(row))
                found.append(values)
        return [torch.stack(found).to(gate.device) for found, gate in zip(made, self.gates, strict=True)]

    def _tables_by_code(self) -> tuple[Tensor, Tensor] | None:
        """For each layer and code the costs ``[metrics]`` and their derivatives ``[metrics, gates]`` before the slope.

        None where layers have different numbers of gates.
        """
        codes = {s.codes for s in self.selections}
        if len(codes) != 1 or not len(self.gates[0]) or len({t.dtype for t in self.tables}) != 1:
            return None
        costs = [table[:, list(s.codes)].t() for s, table in zip(self.selections, self.tables, strict=True)]
        changes = [
            torch.einsum("cjn,kn->ckj", s.changes().to(table), table)
            for s, table in zip(self.selections, self.tables, strict=True)
        ]
        return torch.stack(costs), torch.stack(changes)

    def _start_counting(self) -> None:
        self.losses: list[Tensor] = []
        self.step = 0
        self.flips = 0
        self.signs = self._signs()
        self.started = time.perf_counter()

    def _signs(self) -> Tensor:
        return torch.cat([gate.detach().reshape(-1) > 0 for gate in self.gates]).cpu()

    def start_epoch(self, epoch: int) -> None:
        """Sets phase and schedule. Call it after a resume too."""
        settings, self.epoch = self.settings, epoch
        learned = epoch - settings.warmup_epochs
        phase = "warm-up" if learned < 0 else "search" if learned < settings.gate_epochs else "freeze"
        if phase == "freeze" and learned == settings.gate_epochs:
            self.settle()
        self.phase = phase
        for selection in self.selections:
            selection.set_schedule(min(max(0, learned), settings.gate_epochs), settings.gate_epochs)
            selection.forced, selection.frozen = None, phase == "freeze"
            selection.share, selection.turn = settings.share, True
            selection.forget()
            selection.dtype = settings.neighbour_dtype()
        self._start_counting()

    def start_step(self) -> None:
        """Draws the path of a step of the warm-up; later says whose gates learn from it, and reads all at once."""
        if self.phase == "warm-up":
            for selection in self.selections:
                selection.forced = int(torch.randint(len(selection.names), (), generator=self.draw))
            return
        if self.phase == "search":
            self._take_turns(self.settings.gate_every)
        sync_codes(self.selections)

    def _take_turns(self, every: int) -> None:
        """Of every round of steps, the neighbours of each layer run in one; the order is drawn once an epoch."""
        if self.step == 0:
            self.turns = torch.randperm(len(self.selections), generator=self.draw).tolist()
        for place, layer in enumerate(self.turns):
            self.selections[layer].turn = place % every == self.step % every
        self.step += 1

    def penalty(self) -> Tensor:
        """``lam`` times the objective; zero without gradient in warm-up and freeze. Add it to the loss."""
        if self.phase != "search" or self.lam == 0:
            return torch.zeros((), device=self.gates[0].device)
        return self.lam * self.objective()

    def objective(self) -> Tensor:
        """R of Eq. 8, differentiable in the gates."""
        costs = self._costs()
        return (costs if self.settings.form == "total" else costs.log()).sum() / costs.shape[1]

    def _costs(self) -> Tensor:
        """``[layers, metrics]``, by a few operations for all layers where they are alike."""
        learn = all(s.forced is None and not s.frozen for s in self.selections)
        if self._prices is None or not learn:
            return torch.stack([t @ s.mask() for s, t in zip(self.selections, self.tables, strict=True)])
        at = list(range(len(self.selections))), [s.code() for s in self.selections]
        costs, changes = (t[at] for t in self._prices)
        gates = torch.stack([*self.gates])
        step = (gates - gates.detach()) * torch.stack([s.slope() for s in self.selections])
        return costs + (changes @ step[..., None])[..., 0]

    def end_step(self, loss: Tensor) -> None:
        """Counts flips; keeps the loss on its device until the epoch ends."""
        self.losses.append(loss.detach())
        signs = self._signs()
        self.flips += int((signs != self.signs).sum())
        self.signs = signs

    def end_epoch(self) -> Epoch:
        """Steps the gates' schedule, steers ``lam`` to the target, and tells what happened."""
        for selection in self.selections:
            selection.forced = None
        lam = self.lam if self.phase == "search" else 0.0
        if self.phase == "search":
            if any(map(len, self.gates)):  # else their optimiser has no step to schedule
                self.gate_schedule.step()
            if self.target is not None:
                self._steer(self.target)
        if self.epoch + 1 == self.settings.epochs and self.settings.freeze_epochs == 0:
            self.settle()
        now = self.architecture()
        params, macs = (self.plan.rates(now, metric, "paper") for metric in ("params", "macs"))
        mean = float(torch.stack([loss.float() for loss in self.losses]).mean()) if self.losses else math.nan
        return Epoch(
            self.epoch,
            self.phase,
            mean,
            lam,
            self.flips,
            self.undecided(),
            params.cost,
            macs.cost,
            params.rate,
            macs.rate,
            self.settled,
            time.perf_counter() - self.started,
            self.plan.names(now),
        )

    def _steer(self, target: Target) -> None:
        ratio = self.plan.cost(self.architecture(), target.metric, target.scope) / target.value
        low, high = _LAM_RANGE
        self.lam = min(high, max(low, max(self.lam, low) * ratio**_GAIN))

    def architecture(self) -> list[int]:
        """The operators that the gates choose now, as indices into the plan's options."""
        return chosen(self.model, self.plan)

    def undecided(self) -> int:
        """How many gates are so near zero that another step could turn them."""
        return int(sum(int((gate.detach().abs() < self.settings.undecided).sum()) for gate in self.gates))

    def settle(self) -> int:
        """Where the target is not met, the least decided layers move to their next lighter operator; how many moves.

        The log has the number as ``settled``; 0 is a search that met its target by itself.
        """
        target = self.target
        if target is None:
            return 0
        table = self.plan.table(target.metric, target.scope)
        now = self.architecture()
        # Decided layers move last, and by one operator a round.
        order = sorted(
            range(len(now)), key=lambda j: float(self.gates[j].detach().abs().min()) if len(table[j]) > 1 else 0
        )
        moves = 0
        while self.plan.cost(now, target.metric, target.scope) > target.value:
            before = moves
            for j in order:
                if self.plan.cost(now, target.metric, target.scope) <= target.value:
                    break
                lighter = [i for i, value in enumerate(table[j]) if value < table[j][now[j]]]
                if lighter:
                    now[j] = max(lighter, key=lambda i: table[j][i])
                    moves += 1
            if moves == before:
                break
        for selection, i in zip(self.selections, now, strict=True):
            if selection.index() != i:
                selection.set_index(i)
        self.settled += moves
        return moves

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "settings": self.settings.as_dict(),
            "gate_optimizer": self.gate_optimizer.state_dict(),
            "gate_schedule": self.gate_schedule.state_dict(),
            "lam": self.lam,
            "draw": self.draw.get_state(),
            "settled": self.settled,
            "target": None if self.target is None else asdict(self.target),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state of other settings, and names the first that differs."""
        asked, stored = self.settings.as_dict(), dict(state["settings"])
        for name in asked:
            hint = "resume with the same settings, or begin a new search"
            same = name == "finetune_epochs" or name == "finetune_lr" or stored.get(name) == asked[name]
            require(
                same, "search", name, f"be {stored.get(name)}, as when the checkpoint was written", asked[name], hint
            )
        target = None if self.target is None else asdict(self.target)
        # Measured latencies differ from run to run; the bound that was asked for then does too.
        if target is None or state["target"] is None or target["metric"] != "latency":
            expected = f"be {state['target']}, as when the checkpoint was written"
            require(target == state["target"], "search", "target", expected, str(target))
        self.gate_optimizer.load_state_dict(state["gate_optimizer"])
        self.gate_schedule.load_state_dict(state["gate_schedule"])
        self.lam, self.settled = float(state["lam"]), int(state["settled"])
        self.draw.set_state(state["draw"])
