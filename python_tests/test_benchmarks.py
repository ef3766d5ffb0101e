"""What benchmarks/ says about its numbers: worst cases, verdicts, comparisons. No test here bounds a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))
compare = pytest.importorskip("compare")
machine = pytest.importorskip("machine")
run = pytest.importorskip("run")
tables = pytest.importorskip("tables")
rows = pytest.importorskip("cpu.rows")
Target = rows.Target


def record(values, shape="1x2x3x4", backend="cpu", times=None):
    return {
        "shape": shape,
        "dtype": "float32",
        "kind": "forward",
        "backends": {"nchw": backend, "nhwc": backend},
        "times": times or {},
        "errors": {},
        "refused": {},
        "values": [
            {"key": "best", "layout": layout, "value": v, "median": v, "against": "eager nchw"}
            for layout, v in zip(("nchw", "nhwc"), values, strict=True)
        ],
    }


def test_the_worst_of_shapes_and_layouts_decides():
    target = Target("best", "over the best", 2.0, 1.5)
    records = [record((3.0, 2.5)), record((2.2, 1.7), "5x6x7x8")]
    worst = tables.worst(records, target)
    assert (worst["value"], worst["shape"], worst["layout"]) == (1.7, "5x6x7x8", "nhwc")
    assert tables.verdict(records, target) == "floor met"
    assert tables.verdict(records[:1], target) == "goal met"
    assert tables.verdict([record((1.4, 9.0))], target) == "below the floor"
    assert tables.verdict([], target) == "not measured"


def test_less_is_better_for_costs():
    target = Target("best", "of F.conv2d's", 0.15, 0.3, less=True)
    assert tables.worst([record((0.1, 0.2))], target)["value"] == 0.2
    assert tables.verdict([record((0.1, 0.14))], target) == "goal met"
    assert tables.verdict([record((0.1, 0.2))], target) == "floor met"
    assert tables.verdict([record((0.1, 0.31))], target) == "below the floor"


def test_shapes_handed_to_pytorch_are_named_and_at_most_two():
    target = Target("best", "over the best", 2.0, 1.5)
    given = [record((1.0, 1.0), f"{i}x1x1x1", backend="torch") for i in range(3)]
    own = record((3.0, 3.0), "9x9x9x9")
    assert tables.verdict([own, *given[:2]], target) == "goal met"
    assert tables.handed([own, *given[:2]], target) == ["0x1x1x1", "1x1x1x1"]
    assert tables.verdict([own, *given], target) == "below the floor"
    assert tables.verdict(given[:2], target) == "below the floor"


def test_every_row_has_a_goal_and_a_name_of_its_own():
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    for row in rows.ROWS:
        first = row.targets[0]
        assert first.goal is not None
        assert (first.goal < first.floor) == first.less


def test_markdown_and_csv_of_a_run(tmp_path):
    timing = {"min": 1e-3, "median": 1e-3, "spread": 0.1, "samples": 5, "faults": 7}
    data = {
        "machine": {**machine.describe(), "commit": "abc"},
        "settings": {"rounds": 5, "min_time": 0.05},
        "rows": {
            "concat_forward": {
                "seconds": 1.0,
                "load": 0.2,
                "records": [record((3.0, 2.5), times={"lightkernels nchw": timing, "eager nchw": timing})],
            }
        },
    }
    text = tables.markdown(rows.ROWS, data)
    assert "| concat 3+5+7 forward | over the best | 2.2x | 1.5x | 2.5x |" in text
    assert "inside timed regions, whole run: 14." in text
    assert text.count("not measured") > 5
    tables.write_csv(tmp_path / "run.csv", data)
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert len({line.count(",") for line in lines}) == 1
    assert len(lines) == 5


def test_comparison_names_what_changed_and_separates_the_machine():
    def data(ours, theirs):
        timing = {name: {"min": t} for name, t in (("lightkernels nchw", ours), ("eager nchw", theirs))}
        return {
            "machine": dict.fromkeys(("commit", "date", "processor", "isa", "threads", "torch"), "-"),
            "rows": {"concat_forward": {"records": [record((1.0, 1.0), times=timing)]}},
        }

    lines = compare.compare(data(2e-3, 1e-3), data(1e-3, 1e-3), noise=0.05)
    assert any(line.startswith("  2.00x") and "lightkernels nchw" in line for line in lines)
    assert lines[-2] == "ours: 2.000x over 1 calls"
    assert lines[-1].startswith("PyTorch's: 1.000x over 1 calls")


def test_the_runner_lists_its_rows():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--list"], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [row.name for row in rows.ROWS]


def test_no_instruction_set_finds_what_torch_compile_made_for_another():
    key = "TORCHINDUCTOR_CACHE_DIR"
    folders = {isa: machine.environment(isa, {})[key] for isa in machine.ISA_ENVIRONMENT}
    assert len(set(folders.values())) == len(machine.ISA_ENVIRONMENT) == 3
    # Whoever restricts torch by hand does not fill the cache of an unrestricted run.
    assert machine.environment("auto", {"ATEN_CPU_CAPABILITY": "avx2"})[key] == folders["avx2"]
    assert machine.environment("avx2", {key: "own", "HOME": "/h"}) == {
        **machine.ISA_ENVIRONMENT["avx2"],
        key: "own",
        "HOME": "/h",
    }


def test_the_child_of_a_run_has_the_folder_of_its_instruction_set():
    code = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import run
run.__file__ = "-c"
sys.argv = ["run.py", "import os; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"]
run.in_fresh_processes(type("Args", (), {{"isa": ["auto", "avx2"]}}))
"""
    kept = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    names = [Path(line).name for line in done.stdout.splitlines()]
    assert names == ["auto", "avx2"]


def test_committed_results_are_whole():
    for path in (FOLDER / "results").glob("cpu-*.json"):
        data = json.loads(path.read_text())
        assert set(data["rows"]) <= {row.name for row in rows.ROWS}
        assert path.with_suffix(".md").read_text() == tables.markdown(rows.ROWS, data), path


def test_rows_of_an_earlier_commit_are_kept_on_demand_and_named(tmp_path):
    path = tmp_path / "cpu.json"
    row = {"seconds": 1.0, "load": 0.2, "records": []}
    old = {"machine": {**machine.describe(), "commit": "old"}, "settings": {"rounds": 3, "min_time": 0.05}}
    path.write_text(json.dumps({**old, "rows": {"add_step": row}}))
    head = {**old, "machine": {**old["machine"], "commit": "new", "date": "later"}}
    assert run.previous(path, head, fresh=False, keep=False) == {}
    assert run.previous(path, head, fresh=True, keep=True) == {}
    assert run.previous(path, {**head, "settings": {}}, fresh=False, keep=True) == {}
    kept = run.previous(path, head, fresh=False, keep=True)
    assert kept == {"add_step": {**row, "commit": "old", "date": old["machine"]["date"]}}
    rows_of_both = {**kept, "concat_step": {**row, **run.origin(head)}}
    named = [note for note in tables.notes({**head, "rows": rows_of_both}) if "earlier commit" in note]
    assert named == [f"Measured at an earlier commit (old, {old['machine']['date']}): add_step."]
