"""The native module switched off, chosen, missing and broken: said as a reason, and never an error of the import."""

import importlib.machinery
import shutil
from pathlib import Path

import fresh
import pytest

import lightkernels
from lightkernels._core import native

PACKAGE = Path(lightkernels.__file__).parent
MODULE, WHY = native.load("_C")
built = pytest.mark.skipif(MODULE is None, reason=f"needs the native CPU module: {WHY}")
ISAS = ("baseline", "avx2", "avx512")

# Prints the backends' reasons, the automatic choice, whether a call is right and the instruction set, as JSON.
_CHILD = """
import json
import torch
import torch.nn.functional as F
import lightkernels
from lightkernels._core import native

torch.manual_seed(0)
x, w, b = torch.randn(2, 19, 9, 17), torch.randn(19, 1, 5, 5), torch.randn(19)
told = lightkernels.explain("multi_dwconv2d", x, [w], b)
due = F.conv2d(x.double(), w.double(), b.double(), padding=2, groups=19)
try:
    lightkernels.multi_dwconv2d(x, [w], b, backend="cpu")
    explicit = None
except lightkernels.BackendUnavailable as error:
    explicit = str(error)
module, _ = native.load("_C")
y = lightkernels.multi_dwconv2d(x, [w], b)
print(json.dumps({
    "file": lightkernels.__file__,
    "chosen": told.chosen,
    "cpu": told.reasons["cpu"],
    "explicit": explicit,
    "isa": module and module.isa(),
    "right": torch.allclose(y.double(), due, rtol=1e-5, atol=1e-4),
}))
"""


def child(package=PACKAGE, **variables):
    told = fresh.run(_CHILD, package.parent, **variables)
    assert Path(told["file"]).parent == package
    assert told["right"]
    return told


@pytest.fixture
def copy(tmp_path):
    """The package's Python files alone."""
    return shutil.copytree(
        PACKAGE, tmp_path / "lightkernels", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    )


def unavailable(told, reason):
    """The CPU backend is refused for ``reason``, an explicit call says so too, and PyTorch's own runs instead."""
    assert told["chosen"] == "torch"
    assert told["cpu"] == reason
    assert told["explicit"] == f"multi_dwconv2d: backend 'cpu' cannot run this call: {reason}"
    assert told["isa"] is None


def test_switched_off():
    unavailable(child(LIGHTKERNELS_DISABLE_NATIVE="1"), "switched off by LIGHTKERNELS_DISABLE_NATIVE=1")


@built
def test_not_switched_off_by_another_value():
    assert child(LIGHTKERNELS_DISABLE_NATIVE="0")["chosen"] == "cpu"


@built
@pytest.mark.parametrize("isa", ISAS)
def test_instruction_set(isa):
    there = MODULE.isas()
    assert tuple(there) == ISAS
    told = child(LIGHTKERNELS_CPU_ISA=isa)
    if all(there[isa]):
        assert (told["chosen"], told["cpu"], told["explicit"], told["isa"]) == ("cpu", None, None, isa)
    else:
        usable = ", ".join(i for i in ISAS if all(there[i]))
        unavailable(told, f"LIGHTKERNELS_CPU_ISA={isa} is not to be had here; usable: {usable}")


@built
def test_best_instruction_set_by_default():
    best = [i for i in ISAS if all(MODULE.isas()[i])][-1]
    assert child()["isa"] == best


@built
def test_unknown_instruction_set():
    usable = ", ".join(i for i in ISAS if all(MODULE.isas()[i]))
    told = child(LIGHTKERNELS_CPU_ISA="avx1024")
    unavailable(told, f"LIGHTKERNELS_CPU_ISA=avx1024 is not to be had here; usable: {usable}")


def test_not_built(copy):
    reason = (
        "the native module lightkernels._C is not built (running from a source tree?). Hint: pip install . builds it"
    )
    unavailable(child(copy), reason)


def test_broken_file(copy):
    path = copy / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    path.write_bytes(b"not a library " * 100)
    told = child(copy)
    reason = told["cpu"]
    assert reason.startswith("lightkernels._C failed to load: ")
    assert str(path) in reason  # the loader's own text, which names the file
    unavailable(told, reason)


def test_module_that_needs_what_is_missing(copy):
    """An import error inside the module is not taken for a module that was not built."""
    (copy / "_C.py").write_text("import lightkernels_missing_part\n")
    unavailable(child(copy), "lightkernels._C failed to load: No module named 'lightkernels_missing_part'")


def test_module_of_an_earlier_version(copy):
    """A binary that knows nothing of an operator is a reason, not an AttributeError."""
    (copy / "_C.py").write_text("def isa():\n    return 'baseline'\n")
    told = child(copy)
    assert told.pop("isa") == "baseline"
    why = "the native module lightkernels._C is older than this operator. Hint: pip install . builds it anew"
    unavailable({**told, "isa": None}, why)
