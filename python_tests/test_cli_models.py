"""``lightkernels models``: every network and every paper's row."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from lightkernels import models
from lightkernels.cli import main
from lightkernels.cli import models as table
from lightkernels.cli.app import app
from lightkernels.models.paper_rows import PAPER_ROWS


def test_prints_every_network_and_row() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    words = set(result.output.split())
    assert words >= set(models.list_models())
    for row in PAPER_ROWS:
        assert row.row in result.output
        assert f"{row.params:,}" in words
        assert f"{row.ops:,}" in words
        assert row.note in result.output


def test_a_row_has_both_figures_and_the_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pydmobilenet_add_29_025"]) == 0
    out = capsys.readouterr().out
    figures = ["59,592", "0.060 M", "-0.68 %", "10,310,912", "10 M", "+3.11 %"]
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if line.startswith("pydmobilenet")]
    assert lines == [
        ["pydmobilenet_add_29_025", "PydMobileNet-Add-29-0.25", "CIFAR-10, 10", *figures],
    ]


def test_known_misprints_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "cifar_resnet20_standard"]) == 0
    out = capsys.readouterr().out
    marked = next(line for line in out.splitlines() if "ResNet-20*" in line)
    assert "-53.08 %" in marked
    assert marked.rstrip().endswith("[1]")
    assert "[1] known misprint" in out


def test_unknown_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnext*"]) == 1
    assert "no network is called 'resnext*'" in capsys.readouterr().out


def test_check_counts_anew(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pydmobilenet_add_29_025", "--check"]) == 0
    assert "1 of 1 rows as printed above" in capsys.readouterr().out
    monkeypatch.setattr(table, "count", lambda *args: models.Count(params=59592, ops=1))
    assert main(["models", "pydmobilenet_add_29_025", "--check"]) == 1
    assert "counted (59592, 1), the table above says (59592, 10310912)" in capsys.readouterr().out
