"""The rules of the source tree beside these tests: layers, sizes, names, environment variables, imports."""

import ast
import importlib
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import lightkernels

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightkernels"
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh")

# What each part of the package may import of it, besides itself. "" is the package's own __init__.
BELOW = {
    "_version": set(),
    "_core": set(),
    "testing": {"_core"},
    "ops": {"_core", "testing"},
    "functional": {"_core", "ops"},
    "nn": {"_core", "functional"},
    "models": {"_core", "functional", "nn"},
    "": {"_version", "_core", "ops", "functional", "nn", "models"},
    "train": {"", "_version", "_core", "ops", "functional", "nn", "models"},
    "compress": {"", "_version", "_core", "ops", "functional", "nn", "models", "train"},
    "cli": {"", "_version", "_core", "testing", "ops", "functional", "nn", "models", "train", "compress"},
    "__main__": {"cli"},
}
# explain(op) takes an operator's name, so it looks the operator up when it is called.
UPWARD = {("_core/explain.py", "ops", "lazy")}

PUBLIC = {
    "lightkernels": """BackendUnavailable LearnedGroupConv2d MLDNBlock MultiDepthwiseConv2d Multiception2d RSDC2d
        __version__ compress condensed_conv2d convert exact_nonfinite explain functional mldn_block models
        multi_dwconv2d nn ops rsdc2d use_backend""",
    "lightkernels.compress": """Architecture ArchitectureError CheckpointError Cost Plan Recipe Result Searcher
        Selection Settings Target accuracy build_operator compress cost derive finetune list_operators load
        measure_latencies plain plan preset random_architectures recalibrate reconstruct register_operator save search
        selections""",
    "lightkernels.functional": "condensed_conv2d mldn_block multi_dwconv2d rsdc2d",
    "lightkernels.models": """Count cifar_resnet condensenet count create_model densenet121_16 dilated_mobilenetv2
        list_models mldn mobilenetv2 mobilenetv2_16 multiception_net pydmobilenet resnet18_cifar vgg16_cifar""",
    "lightkernels.nn": """CondensedConv2d CondensedReactivation DepthwiseSeparable2d LearnedGroupConv2d
        MLDNBlock MultiDepthwiseConv2d Multiception2d RSDC2d SparseFeatureReactivation condense group_lasso rsdc_rule
        set_condensation_progress""",
    "lightkernels.testing": """Case Draw Embedded Sample assert_accurate assert_adjoint assert_close64
        assert_keeps_layout assert_same_bits embed guarded poisoned rms same_bits views""",
}


def sources(*folders, suffixes=SUFFIXES):
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)


def part(module):
    """The part of the package that a dotted name lies in; None outside the package."""
    names = module.split(".")
    if names[0] != "lightkernels":
        return None
    return names[1] if len(names) > 1 and names[1] in BELOW else ""


def imports(path):
    """(dotted name, whether at a function call only) of everything that a file imports, ``from`` names included."""
    tree = ast.parse(path.read_text())
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(node) for f in functions for node in ast.walk(f)}
    package = ["lightkernels", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{alias.name}", id(node) in lazy) for alias in node.names)


def test_imports_go_down():
    upward = set()
    for path in sources("lightkernels", suffixes=(".py",)):
        where = path.relative_to(PACKAGE)
        own = "" if where.name == "__init__.py" and len(where.parts) == 1 else where.parts[0].removesuffix(".py")
        for name, lazy in imports(path):
            target = part(name)
            if target is not None and target != own and target not in BELOW[own]:
                upward.add((where.as_posix(), target, "lazy" if lazy else "at import"))
    assert upward == UPWARD


def test_the_kernels_know_neither_torch_nor_python():
    foreign = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|Python\.h|pybind11)\b.*')
    found = {
        path.relative_to(ROOT).parts[1]
        for path in sources("csrc")
        if any(foreign.match(line.strip()) for line in path.read_text().splitlines())
    }
    assert found == {"bindings"}


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def test_the_kernels_neither_assert_nor_print_nor_exit():
    call = re.compile(r"\b(assert|printf|exit)\s*\(")
    calls = [(p.name, m.group(1)) for p in sources("csrc") for m in call.finditer(without_comments(p.read_text()))]
    assert calls == []


def test_files_are_short():
    files = sources("lightkernels", "csrc", "python_tests", "benchmarks")
    lines = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in files}
    assert {p.suffix for p in files} >= {".py", ".h", ".cpp"}
    assert {name: n for name, n in lines.items() if n > 500} == {}
    assert statistics.median(lines.values()) <= 200


def test_one_operator_one_folder():
    folders = {p.parent.name for p in (PACKAGE / "ops").glob("*/__init__.py")} - {"_template"}
    assert {p.name for p in (PACKAGE / "ops").glob("*.py")} == {"__init__.py"}
    # The template stands there too once another test has imported it.
    assert folders == {name for name, thing in vars(lightkernels.ops).items() if hasattr(thing, "OP")} - {"_template"}
    for folder in folders:
        op = getattr(lightkernels.ops, folder).OP
        assert (op.name, op.package) == (folder, f"lightkernels.ops.{folder}")
        assert {"op.py", "reference.py", "cases.py"} <= {p.name for p in (PACKAGE / "ops" / folder).iterdir()}
    kernels = {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()} - {"lk", "bindings"}
    # What compress alone calls is no operator.
    assert kernels - {"channel_norm"} <= folders


def test_environment_variables_are_the_documented_ones():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "environment.md").read_text(), re.M)
    files = [*sources("lightkernels", "csrc"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]
    texts = {p: p.read_text() for p in files}
    read = re.compile(r"""(?:environ(?:\.get)?|getenv)\s*[(\[]\s*["'](LIGHTKERNELS_\w+)|\$ENV\{(LIGHTKERNELS_\w+)""")
    found = {a or b for text in texts.values() for a, b in read.findall(text)}
    assert len(table) == 8 and sorted(table) == sorted(found)
    # A variable read under a name that the pattern above cannot see is at least mentioned somewhere in Python.
    mentioned = {
        name for p, t in texts.items() if p.suffix == ".py" for name in re.findall(r"LIGHTKERNELS_[A-Z]\w*", t)
    }
    assert mentioned <= set(table)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(PUBLIC[module].split())
    assert [name for name in found.__all__ if not hasattr(found, name)] == []


def test_the_package_is_typed():
    assert Path(lightkernels.__file__).with_name("py.typed").is_file()


HEAVY = ("triton", "matplotlib", "sklearn", "typer", "rich")


def modules_after(statement):
    """Whether CUDA is initialised, and the modules loaded, in a process of its own."""
    where = str(Path(lightkernels.__file__).parents[1])
    path = os.pathsep.join(p for p in (where, os.environ.get("PYTHONPATH")) if p)
    code = (
        f"import sys\n{statement}\nprint(torch.cuda.is_initialized(), *sorted(n for n, m in sys.modules.items() if m))"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    cuda, *names = run.stdout.split()
    return cuda, set(names)


def test_importing_is_light():
    # torch's own FLOP counter, whose formulas the operators register, imports triton where there is one.
    _, torch_alone = modules_after("import torch, torch.utils.flop_counter")
    cuda, names = modules_after("import torch, lightkernels")
    added = names - torch_alone
    assert "lightkernels.ops.multi_dwconv2d.op" in added
    assert sorted(name for name in added if name.partition(".")[0] in HEAVY) == []
    assert "lightkernels._cuda" not in added and cuda == "False"


def test_importing_needs_torch_alone():
    _, names = modules_after(f"sys.modules.update(dict.fromkeys({HEAVY}))\nimport torch, lightkernels")
    assert "lightkernels.ops.multi_dwconv2d.op" in names
