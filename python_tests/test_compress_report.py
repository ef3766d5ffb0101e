"""The whole call, its report, the command line, and interruption."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest
import torch
from compress_helpers import SITES, batches, images, network

from lightkernels import cli, compress
from lightkernels._core import measure
from lightkernels.compress import preset, report

pytest.importorskip("matplotlib")


def short(**changes):
    return preset(
        "recommended", **{"epochs": 3, "warmup_epochs": 1, "freeze_epochs": 0, "finetune_epochs": 1, **changes}
    )


def whole(tmp_path, **options):
    values = {"settings": short(), "target_params": "60%", "evaluate": batches(1), "out": tmp_path, "weights": "torch"}
    return compress.compress(network(), batches(2), **{**values, "progress": False, **options})


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Timing that measures each call once: what is timed is checked here, not how well."""

    def interleaved(candidates, **options):
        return {name: measure.Timing((seconds(call),), 1, 0) for name, call in candidates.items()}

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "interleaved", interleaved)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    return folder, whole(folder, baselines=2)


def test_one_call_leaves_everything(run):
    folder, result = run
    names = {path.name for path in folder.iterdir()}
    assert names >= {"architecture.json", "weights.pt", "result.json", "search.jsonl", "search.pt", "report.html"}
    assert names >= {"operators.png", "histogram.png", "pareto.png", "course.png", "latency.png"}
    assert not any(name.endswith(".tmp") for name in names)
    plan, found = result.plan, result.found
    assert plan.cost(found, "params") <= 0.6 * plan.before("params")
    assert plan.cost(found, "params") == sum(p.numel() for p in result.model.parameters())
    loaded, _ = compress.load(folder, network())
    torch.testing.assert_close(loaded(images()), result.model.eval()(images()))
    stored = json.loads((folder / "result.json").read_text())
    assert set(stored["scopes"]["params"]) == {"replaced", "paper", "whole"}
    assert len(result.tuning) == 1 and len(stored["baselines"]) == 2
    for baseline in result.baselines:
        assert baseline.params == pytest.approx(plan.cost(found, "params"), rel=0.5)
        assert baseline.accuracy is not None
    assert f"PCR {result.pcr:.2f}" in str(result)


def test_the_report_says_what_it_must(run):
    folder, result = run
    text = (folder / "report.html").read_text()
    assert text.count("random, equal cost") == 2 and "random, mean" in text
    assert f"undecided gates: {result.undecided}" in text
    assert all(f"({rate}), {scope}" in text for rate in ("PCR", "FCR") for scope in ("replaced", "paper", "whole"))
    assert "ms before" in text and "rates of uniformly random operators" in text
    assert text.count("data:image/png;base64,") == 5
    assert all(f"<td>{name}</td>" in text for name in SITES)
    assert "it is the first convolution" in text
    assert not re.search(r"https?://", text)
    several = report.write_report(folder / "both", [result, result])
    assert several.read_text().count("<h2>") == 3


def test_warnings_come_where_they_should(run):
    _, result = run
    latencies = result.plan.latencies
    slow = [[value * 1e3 for value in row] for row in latencies.options]
    lighter = [i for i, (site, j) in enumerate(zip(result.plan.sites, result.found, strict=True))
               if site.options[j].macs < site.before.macs]  # fmt: skip
    from dataclasses import replace

    changed = replace(
        result,
        plan=replace(result.plan, latencies=replace(latencies, options=tuple(map(tuple, slow)))),
        baselines=[replace(b, accuracy=None) for b in result.baselines],
        seconds={**result.seconds, "after": 2 * result.seconds["before"]},
    )
    found = report.warnings(changed)
    assert sum("lighter but slower" in text for text in found) == len(lighter) > 0
    assert any("slower than the uncompressed" in text for text in found)
    assert any("no random architecture was trained" in text for text in found)
    better = replace(result, accuracy=0.0, baselines=[replace(b, accuracy=1.0) for b in result.baselines])
    assert any("random architectures of equal cost are more accurate" in text for text in report.warnings(better))


def test_a_target_out_of_reach_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"target_params must be at least .* Hint: replace more layers"):
        whole(tmp_path, target_params="1%")
    with pytest.raises(ValueError, match=r"the target must be one; got 'target_params and target_macs'"):
        whole(tmp_path, target_macs="50%")
    assert list(tmp_path.iterdir()) == []


def test_latency_as_cost_and_target():
    result = compress.compress(
        network(), batches(1), settings=short(cost="latency", epochs=2), target_latency="300%", progress=False,
        baselines=1, train_baselines=False, names="block1.*",
    )  # fmt: skip
    assert result.plan.latencies is not None and result.target.metric == "latency"
    assert result.plan.cost(result.found, "latency") <= result.target.value
    assert result.baselines[0].accuracy is None and result.accuracy is None


def test_the_whole_run_resumes_where_it_was_interrupted(tmp_path):
    first = whole(tmp_path / "whole", baselines=1, report=False)

    def stop(record):
        if record["phase"] == "fine-tune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "cut", baselines=1, report=False, progress=stop)
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names == {"search.pt", "search.jsonl", "fine-tune.pt", "fine-tune.jsonl"}
    again = whole(tmp_path / "cut", baselines=1, report=False, resume=True)
    assert again.architecture.operators == first.architecture.operators
    state, other = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_new_run_does_not_go_on_from_an_older_ones_training(tmp_path):
    options = {"baselines": 0, "report": False, "operators": "N_3x3", "target_params": None}
    first = whole(tmp_path, **options)

    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path, settings=short(finetune_lr=0.0), progress=stop, **options)
    again = whole(tmp_path, settings=short(finetune_lr=0.0), resume=True, **options)
    assert again.tuning[0]["loss"] != first.tuning[0]["loss"]


def test_an_evaluation_gives_any_number_and_what_cannot_is_refused_first(tmp_path):
    given = {"baselines": 0, "report": False, "names": "block1.conv1", "target_params": None}
    result = whole(tmp_path, evaluate=lambda network: torch.tensor(float("nan")), **given)
    stored = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert stored["accuracy"] is None and type(result.accuracy) is float
    assert compress.load(tmp_path, network())[1].notes["accuracy"] is None
    for wrong, error, text in (
        ({"evaluate": 5}, TypeError, "evaluate must be a function of a network or a loader; got 5"),
        ({"evaluate": iter(batches(1))}, ValueError, "evaluate must be readable more than once"),
        ({"evaluate": lambda network: None}, TypeError, "evaluate must return a number; got None"),
        ({"weights": "pickle"}, ValueError, "weights must be one of 'safetensors', 'torch'; got 'pickle'"),
        ({"baselines": -1}, ValueError, "baselines must be at least 0; got -1"),
        ({"settings": "paper"}, TypeError, "settings must be Settings; got 'paper'"),
        ({"out": tmp_path / "result.json"}, OSError, "result.json"),
    ):
        told = []
        with pytest.raises(error, match=text):
            whole(tmp_path / "new", **{**given, "progress": told.append, **wrong})
        assert told == []
    with pytest.raises(ValueError, match="train_loader must be readable more than once; got list_iterator"):
        compress.compress(network(), iter(batches(1)))


def test_command_dry_run_and_errors(capsys):
    assert cli.main(["compress", "--dry-run", "--operators", "SOP8"]) == 0
    printed = capsys.readouterr().out
    assert "layers are replaced" in printed and "params, whole" in printed and "latency, whole" in printed
    assert cli.main(["compress", "--dry-run", "--target-params", "1%"]) == 1
    assert re.search(r"^lightkernels: compress: target_params must be at least .*Hint", capsys.readouterr().err)
    assert cli.main(["compress", "--dry-run", "--model", "no_such_net"]) == 1
    assert "list_models()" in capsys.readouterr().err
    assert cli.main(["compress", "--dry-run", "--model", "no_such_module:net"]) == 1
    assert "must name a function as in package.module:function" in capsys.readouterr().err


def test_command_with_a_network_and_data_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_for_compress.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), "
        "nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 3))\n"
        "def data():\n    part = [(torch.randn(6, 3, 6, 6), torch.randint(3, (6,)))]\n    return part, part\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    mine = ["--model", "mine_for_compress:net", "--data", "mine_for_compress:data", "--operators", "N_3x3,N_3x3_4"]
    options = ["--epochs", "2", "--finetune-epochs", "1", "--lam", "0", "--lam", "0.1", "--weights", "torch"]
    assert cli.main(["compress", *mine, *options, "--out", "run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Result") == 2 and "run/report.html" in printed
    assert (tmp_path / "run" / "lambda-0.1" / "architecture.json").exists()
