"""The search: phases, schedule, objective, target, resuming, mixed precision, and a loop of one's own."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from compress_helpers import batches, images, network
from torch.utils.data import DataLoader, TensorDataset

from lightkernels import compress
from lightkernels.compress import Recipe, Searcher, Settings, checkpoint, preset

QUIET = {"progress": False}


def made(operators="SOP8", **options):
    return compress.reconstruct(network(), images(), operators, **options)


def settings(**changes):
    given = {"epochs": 4, "warmup_epochs": 1, "freeze_epochs": 1, "lr": 0.05, "gate_every": 2, **changes}
    return preset("recommended", **given)


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_the_papers_settings_and_the_presets():
    paper = preset("paper")
    assert (paper.epochs, paper.warmup_epochs, paper.freeze_epochs, paper.lam) == (150, 0, 0, 1.5e-3)
    assert (paper.lr, paper.momentum, paper.weight_decay) == (0.1, 0.9, 3e-4)
    assert (paper.gate_lr, paper.gate_weight_decay, paper.gate_step, paper.gate_gamma) == (0.01, 1e-3, 40, 0.3)
    short = preset("recommended", epochs=10)
    assert (short.warmup_epochs, short.freeze_epochs, short.gate_step) == (2, 1, 3)
    assert preset("recommended", epochs=10, warmup_epochs=5).warmup_epochs == 5
    with pytest.raises(ValueError, match=r"preset: name must be one of 'paper', 'recommended'; got 'fast'"):
        preset("fast")
    with pytest.raises(ValueError, match=r"epochs must exceed warm-up and freeze, 9; got 9"):
        Settings(epochs=9, warmup_epochs=5, freeze_epochs=4)
    with pytest.raises(TypeError, match=r"lr must be a number; got 'high'"):
        Settings(lr="high")
    with pytest.raises(ValueError, match=r"cost must be one of"):
        Settings(cost="flops")


def test_phases_schedule_and_gradients():
    net, plan = made()
    searcher = Searcher(net, plan, settings(epochs=6, warmup_epochs=2))
    x, y = batches()[0]
    seen = []
    for epoch in range(6):
        searcher.start_epoch(epoch)
        searcher.start_step()
        (F.cross_entropy(net(x), y) + searcher.penalty()).backward()
        gradients = [gate.grad is not None for gate in searcher.gates]
        seen.append((searcher.phase, all(gradients), any(gradients), round(searcher.selections[0].t, 4)))
        net.zero_grad()
    expected = [0.1, 0.1, 0.1, 0.1 * 100 ** (1 / 3), 0.1 * 100 ** (2 / 3), 10.0]
    assert [row[3] for row in seen] == [pytest.approx(t, abs=1e-3) for t in expected]
    phases = ["warm-up", "warm-up", "search", "search", "search", "freeze"]
    assert [row[0] for row in seen] == phases
    assert [row[1] for row in seen] == [row[2] for row in seen] == [phase == "search" for phase in phases]


def test_the_papers_schedule_is_that_of_section_3():
    net, plan = made()
    searcher = Searcher(net, plan, preset("paper"))
    table = {0: (0.1, 5.0), 37: (0.311, 1.61), 75: (1.0, 0.5), 100: (2.154, 0.5), 125: (4.642, 0.5), 149: (9.698, 0.5)}
    for epoch, (t, k) in table.items():
        searcher.start_epoch(epoch)
        selection = searcher.selections[-1]
        assert (selection.t, selection.k) == (pytest.approx(t, abs=6e-4), pytest.approx(k, abs=6e-3))


def test_the_warm_up_draws_every_operator():
    net, plan = made()
    searcher = Searcher(net, plan, settings())
    searcher.start_epoch(0)
    drawn = set()
    for _ in range(60):
        searcher.start_step()
        drawn.add(searcher.selections[0].forced)
    assert drawn == set(range(8))
    searcher.end_epoch()
    assert searcher.selections[0].forced is None


def test_gates_that_take_turns_use_the_last_turns_products():
    net, plan = made()
    net.double()
    x, y = images(4).double(), torch.tensor([0, 1, 2, 3])

    def gradients(every, steps):
        searcher = Searcher(net, plan, settings(lam=0.0, warmup_epochs=0, gate_every=every), seed=3)
        searcher.start_epoch(0)
        rows, ran = [], []
        for _ in range(steps):
            searcher.start_step()
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            rows.append([gate.grad.clone() for gate in searcher.gates])
            ran.append([selection.turn for selection in searcher.selections])
        return rows, ran

    ((exact,), _), (rows, ran) = gradients(1, 1), gradients(3, 6)
    for start in range(4):
        assert [sum(turn) for turn in zip(*ran[start : start + 3], strict=True)] == [1] * len(exact)
    # Nothing else changes from step to step here, so that what was kept is what would be found.
    for row in rows[2:]:
        torch.testing.assert_close(row, exact)
    assert any(not torch.equal(a, b) for a, b in zip(rows[0], exact, strict=True))


def test_the_objective_is_equation_8_and_finite_for_every_code():
    names = ["skip_connect", "N_3x3_4", "N_3x3"]
    net, plan = compress.reconstruct(network(), images(), names, names="block1.*")
    for cost, form in (("paper", "log"), ("params", "log"), ("macs", "total")):
        searcher = Searcher(net, plan, settings(cost=cost, form=form))
        searcher.start_epoch(1)
        for i in range(3):
            for selection in searcher.selections:
                selection.set_index(i)
            value = searcher.objective()
            gradients = torch.autograd.grad(value, searcher.gates)
            assert value.isfinite() and all(g.isfinite().all() for g in gradients)
    net, plan = made("SOP1")
    searcher = Searcher(net, plan, settings())
    searcher.start_epoch(1)
    found = [site.options[i] for site, i in zip(plan.sites, searcher.architecture(), strict=True)]
    expected = sum((math.log(option.weights) + math.log(option.macs)) / 2 for option in found)
    assert float(searcher.objective().detach()) == pytest.approx(expected, rel=1e-6)


def test_the_objectives_gradient_is_that_of_one_bit_neighbours():
    """Section 4: TG'(alpha) (dPS / PS + dFP / FP) / 2 between the operators that a gate chooses from."""
    net, plan = made("SOP2")
    searcher = Searcher(net, plan, settings())
    searcher.start_epoch(2)
    gradients = torch.autograd.grad(searcher.objective(), searcher.gates)
    for site, selection, found in zip(plan.sites, searcher.selections, gradients, strict=True):
        now, code, bits = site.options[selection.index()], selection.code(), len(selection.alpha)
        for j, slope in enumerate(selection.slope().tolist()):
            bit = 1 << (bits - 1 - j)
            one, zero = (site.options[selection.codes[c]] for c in (code | bit, code & ~bit))
            change = (one.weights - zero.weights) / now.weights + (one.macs - zero.macs) / now.macs
            assert float(found[j]) == pytest.approx(slope * change / 2, rel=1e-5, abs=1e-7)


def test_cost_order_leaves_no_local_minimum():
    """In the order of cost every gate that falls from 1 to 0 makes its layer cheaper, in every set."""
    for number in range(1, 11):
        plan = compress.plan(network(), images(), f"SOP{number}")
        for site in plan.sites:
            costs = [math.log(o.weights) + math.log(o.macs) for o in site.options]
            assert costs == sorted(costs)
    printed = compress.plan(network(), images(), "SOP8", order="paper").sites[0].names
    assert printed == ("N_3x3", "N_3x3_2", "N_3x3_4", "Dil_res_5x5_8", "Fire", "C_3x3_4", "C_3x3_8", "Sep_res_5x5_8")


def test_the_price_alone_leads_to_the_lightest_operators():
    net, plan = made()
    searcher = Searcher(net, plan, settings(epochs=60, warmup_epochs=0, freeze_epochs=0, lam=1.0, gate_lr=0.05))
    for epoch in range(60):
        searcher.start_epoch(epoch)
        searcher.gate_optimizer.zero_grad()
        searcher.penalty().backward()
        searcher.gate_optimizer.step()
    assert searcher.architecture() == [0] * 4


def test_search_finds_derives_and_logs(tmp_path):
    net, plan = made()
    target = plan.target("params", "30%")
    log, told = tmp_path / "search.jsonl", []
    records = compress.search(net, plan, batches(), settings(), target=target, log=log, progress=told.append)
    assert [json.loads(line) for line in log.read_text().splitlines()] == records == told
    assert [record["phase"] for record in records] == ["warm-up", "search", "search", "freeze"]
    assert set(records[-1]["operators"]) == {site.name for site in plan.sites}
    found = plan.indices(records[-1]["operators"])
    assert plan.cost(found, "params") <= target.value
    assert records[-1]["settled"] > 0  # three epochs alone do not get there
    # Gates that settled do not move any more.
    assert records[-1]["flips"] == 0


def test_the_controller_raises_lambda_above_the_target_and_lowers_it_below():
    net, plan = made()
    for share, grows in (("20%", True), ("100%", False)):
        searcher = Searcher(net, plan, settings(), target=plan.target("macs", share))
        searcher.start_epoch(1)
        before = searcher.lam
        searcher.penalty().backward()
        searcher.gate_optimizer.step()
        for selection in searcher.selections:
            selection.set_index(4)
        searcher.end_step(torch.zeros(()))
        searcher.end_epoch()
        assert (searcher.lam > before) is grows and searcher.lam != before


class Stop(Exception):
    pass


def test_resume_is_bit_for_bit(tmp_path):
    data = TensorDataset(torch.randn(24, 3, 8, 8), torch.randint(4, (24,)))

    def loader():
        torch.manual_seed(7)
        return DataLoader(data, 8, shuffle=True)

    def run(name, progress=False, resume=False, loader=None):
        net, plan = made()
        files = {"checkpoint": tmp_path / f"{name}.pt", "log": tmp_path / f"{name}.jsonl"}
        target = plan.target("params", "40%")
        options = {"target": target, "progress": progress, "resume": resume, **files}
        return net, compress.search(net, plan, loader, settings(epochs=5), **options)

    def stop(record):
        if record["epoch"] == 2:
            raise Stop

    whole, records = run("whole", loader=loader())
    with pytest.raises(Stop):
        run("cut", stop, loader=loader())
    interrupted = loader()
    torch.manual_seed(123)  # what a new process would have is not what the old one had
    net, again = run("cut", resume=True, loader=interrupted)
    assert same(net.state_dict(), whole.state_dict())
    assert without_seconds(again) == without_seconds(records)
    done, nothing_new = run("cut", resume=True, loader=loader())
    assert same(done.state_dict(), whole.state_dict()) and nothing_new == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jsonl", "cut.pt", "whole.jsonl", "whole.pt"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    net, plan = made()
    path = tmp_path / "search.pt"
    compress.search(net, plan, batches(1), settings(), checkpoint=path, **QUIET)
    with pytest.raises(ValueError, match=r"search: lam must be 0.0015, as when the checkpoint was written; got 0.5"):
        compress.search(net, plan, batches(1), settings(lam=0.5), checkpoint=path, resume=True, **QUIET)
    with pytest.raises(ValueError, match=r"search: epochs must be 4"):
        compress.search(net, plan, batches(1), settings(epochs=9), checkpoint=path, resume=True, **QUIET)
    with pytest.raises(ValueError, match=r"search: target must be None, as when the checkpoint was written; got"):
        compress.search(
            net, plan, batches(1), settings(), checkpoint=path, resume=True, target=plan.target("macs", "50%"), **QUIET
        )
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match=r"search.pt must be a checkpoint of a search"):
        compress.search(net, plan, batches(1), settings(), checkpoint=path, resume=True, **QUIET)
    torch.save({"a": 1}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"got another file"):
        compress.search(net, plan, batches(1), settings(), checkpoint=path, resume=True, **QUIET)
    with pytest.raises(ValueError, match=r"resume must come with a checkpoint's path"):
        compress.search(net, plan, batches(1), settings(), resume=True, **QUIET)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_mixed_precision(dtype):
    net, plan = made()
    recipe = Recipe(amp=dtype)
    short = settings(epochs=2, warmup_epochs=0, freeze_epochs=0, lr=0.01)
    records = compress.search(net, plan, batches(2), short, recipe=recipe, **QUIET)
    assert all(math.isfinite(record["loss"]) for record in records)
    assert all(s.alpha.dtype == torch.float32 for s in compress.selections(net).values())


def test_other_losses_batches_and_optimisers():
    def batch_loss(model, batch):
        return F.mse_loss(model(batch["image"]), batch["wanted"])

    data = [{"image": x, "wanted": torch.zeros(8, 4)} for x, _ in batches()]
    used = []

    def optimizer(parameters):
        used.append(torch.optim.AdamW(parameters, 1e-3))
        return used[-1]

    def schedule(optimizer, epochs):
        return torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=epochs)

    net, plan = made()
    recipe = Recipe(batch_loss=batch_loss, optimizer=optimizer, schedule=schedule)
    records = compress.search(net, plan, data, settings(), recipe=recipe, **QUIET)
    assert records[-1]["loss"] < records[0]["loss"] and len(used) == 1
    with pytest.raises(ValueError, match=r"give batches \(inputs, target\); got 'dict'. Hint: batch_loss"):
        compress.search(net, plan, data, settings(), **QUIET)
    with pytest.raises(
        ValueError, match=r"at least one batch in every epoch; got 'none'. Hint: an iterator can be read"
    ):
        compress.search(*made(), iter(batches(1)), settings(), **QUIET)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(terminal, monkeypatch, capsys):
    if terminal:
        pytest.importorskip("rich")
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
    net, plan = made(names="block1.*")
    compress.search(net, plan, batches(1), settings(epochs=3))
    shown = capsys.readouterr()
    assert shown.out == "" and "undecided" in shown.err and "3/3" in shown.err
    assert ("\x1b[" in shown.err) is terminal
    assert terminal or len(shown.err.splitlines()) == 3


def test_a_loop_of_ones_own_is_the_search():
    """What ``search`` does, written out with a Searcher, ends in the same bits."""
    net, plan = made()
    chosen = settings(clip_norm=None)
    records = compress.search(net, plan, batches(), chosen, seed=3, **QUIET)
    mine, plan = made()
    searcher = Searcher(mine, plan, chosen, seed=3)
    sgd = torch.optim.SGD(searcher.weights, chosen.lr, chosen.momentum, weight_decay=chosen.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, chosen.epochs)
    mine.train()
    for epoch in range(chosen.epochs):
        searcher.start_epoch(epoch)
        for x, y in batches():
            searcher.start_step()
            sgd.zero_grad()
            searcher.gate_optimizer.zero_grad()
            loss = F.cross_entropy(mine(x), y)
            (loss + searcher.penalty()).backward()
            sgd.step()
            searcher.gate_optimizer.step()
            searcher.end_step(loss)
        cosine.step()
        record = searcher.end_epoch()
    assert same(mine.state_dict(), net.state_dict())
    assert record.operators == records[-1]["operators"] and record.loss == records[-1]["loss"]


def test_a_searcher_wants_the_plan_of_its_model():
    net, _ = made()
    other = compress.plan(network(), images(), names="block1.*")
    with pytest.raises(ValueError, match=r"model must have selection operators at .* Hint: reconstruct returns both"):
        Searcher(net, other, settings())
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().lam = 2


def test_arguments_of_the_wrong_type_are_refused_before_anything_is_trained(tmp_path):
    net, plan = made(names="block1.conv1")
    with pytest.raises(
        TypeError, match=r"settings must be Settings; got 'paper'. Hint: preset\(\"paper\"\) makes them"
    ):
        compress.search(net, plan, batches(1), "paper")
    with pytest.raises(TypeError, match=r"target must be a Target; got '50%'. Hint: plan.target"):
        compress.search(net, plan, batches(1), settings(), target="50%")
    with pytest.raises(TypeError, match=r"recipe must be a Recipe; got dict"):
        compress.search(net, plan, batches(1), settings(), recipe={"amp": None})
    with pytest.raises(TypeError, match=r"plan must be the Plan that reconstruct returned; got None"):
        compress.search(net, None, batches(1), settings())
    with pytest.raises(TypeError, match=r"clip_norm must be a number; got 'a'"):
        settings(clip_norm="a")
    (tmp_path / "file").touch()
    told = []
    with pytest.raises(OSError, match="file"):
        compress.search(
            net, plan, batches(1), settings(), checkpoint=tmp_path / "file" / "search.pt", progress=told.append
        )
    assert told == []


def test_a_search_that_diverges_stops_and_keeps_its_checkpoint(tmp_path):
    net, plan = made()
    path = tmp_path / "search.pt"
    bad = [(x * float("inf"), y) for x, y in batches(1)]
    with pytest.raises(ValueError, match=r"search: the loss must be finite; got 'nan in epoch 0'. Hint: a lower lr"):
        compress.search(net, plan, bad, settings(), checkpoint=path, **QUIET)
    assert not path.exists()


@pytest.mark.gpu
@pytest.mark.parametrize("amp", [None, torch.float16], ids=["fp32", "fp16"])
def test_on_a_gpu(amp, tmp_path):
    model = network().cuda().to(memory_format=torch.channels_last)
    net, plan = compress.reconstruct(model, images().cuda(), "SOP2")
    path = tmp_path / "search.pt"
    records = compress.search(net, plan, batches(), settings(), recipe=Recipe(amp=amp), checkpoint=path, **QUIET)
    assert all(math.isfinite(record["loss"]) for record in records)
    again, _ = compress.reconstruct(model, images().cuda(), "SOP2")
    options = {"recipe": Recipe(amp=amp), "checkpoint": path, "resume": True}
    assert compress.search(again, plan, batches(), settings(), **options, **QUIET) == records
    assert same(again.state_dict(), net.state_dict())
    derived, _ = compress.derive(net, plan)
    torch.testing.assert_close(derived.eval()(images().cuda()), net.eval()(images().cuda()))
