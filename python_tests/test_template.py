"""A copy of the template, under another name, is an operator that passes the whole generated suite."""

import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lightkernels.ops

FOLDER = Path(__file__).parent
TEMPLATE = next(p / "_template" for p in map(Path, lightkernels.ops.__path__) if (p / "_template").is_dir())


@pytest.fixture
def package(tmp_path):
    """``new_ops.channel_scale``, made by the steps of CONTRIBUTING.md in a package of its own."""
    shutil.copytree(TEMPLATE, tmp_path / "new_ops" / "channel_scale", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "new_ops" / "__init__.py").write_text("from new_ops import channel_scale as channel_scale\n")
    return tmp_path


def suite(package, *options):
    """Runs the generated suite on ``new_ops``; returns pytest's process and how many tests had each outcome."""
    paths = [str(package), str(Path(importlib.util.find_spec("lightkernels").origin).parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    files = sorted(map(str, FOLDER.glob("test_generated_*.py")))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rN", "-n0", "-pno:cacheprovider", "--ops", "new_ops", *options, *files],
        capture_output=True, text=True, timeout=280, env=environment, cwd=package, check=False,
    )  # fmt: skip
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", run.stdout)}
    return run, counts


def test_names_nothing_of_its_folder():
    """A copy needs no edit: neither imports nor text say where the template stands."""
    for path in TEMPLATE.glob("*.py"):
        modules = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert not [m for m in modules if m.startswith("lightkernels.ops")], path
        assert "_template" not in path.read_text(), path


def test_copy_passes_the_generated_suite(package):
    """All kinds but the one that runs the compiler's code generator: opcheck, gradients, transforms, export, memory."""
    run, counts = suite(package, "-k", "not inductor", "-vv")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert counts["passed"] > 200
    assert "failed" not in counts and "error" not in counts
    passed = [line for line in run.stdout.splitlines() if " PASSED" in line]
    for kind in ("opcheck", "numerical_gradient", "numerical_second_order", "loops", "batches", "export", "autocast"):
        assert any(f"[channel_scale-reference-{kind}-" in line for line in passed), kind


def test_counts_its_flops():
    """The generated suite cannot: torch's counter knows no elementwise call to compare with."""
    template = importlib.import_module("lightkernels.ops._template")
    with FlopCounterMode(display=False) as counter:
        template.function(torch.randn(2, 5, 4, 3), torch.randn(5), torch.randn(5))
    assert counter.get_total_flops() == 2 * 2 * 5 * 4 * 3


def test_wrong_copy_fails(package):
    """The suite judges the copy and nothing else: a gradient of the wrong sign is seen."""
    path = package / "new_ops" / "channel_scale" / "reference.py"
    right = path.read_text()
    wrong = right.replace("return (g * x).sum((0, 2, 3))", "return -(g * x).sum((0, 2, 3))")
    assert wrong != right
    path.write_text(wrong)
    run, counts = suite(package, "-k", "outputs_and_gradients or numerical_gradient", "--tb=line")
    assert run.returncode == 1
    assert counts["failed"] > 10
