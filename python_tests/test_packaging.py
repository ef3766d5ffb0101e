"""What is shipped: the source archive is the source tree, the wheel the package, and neither what lies about."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", "benchmarks", "csrc", "docs", "lightkernels", "python_tests")
FILES = (".clang-format", ".gitignore", "CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in",
         "README.md", "constraints.txt", "pyproject.toml", "setup.py")  # fmt: skip
LEFT_BEHIND = (
    "lightkernels/_C.cpython-310-x86_64-linux-gnu.so",
    "lightkernels/_core/__pycache__/op.cpython-310.pyc",
    "lightkernels/ops/_template/__pycache__/op.cpython-310.pyc",
    "python_tests/.hypothesis/examples/1",
    "benchmarks/.pytest_cache/v/lastfailed",
    "benchmarks/.benchmarks/0001.json",
    "csrc/.ruff_cache/1",
    "build/cmake/CMakeCache.txt",
    "runs/bench/cpu.json",
    ".mypy_cache/1.json",
    ".pytest_cache/1",
    "private.txt",
)
BUILD = """
from setuptools import build_meta
import runpy, sys

print(build_meta.build_sdist("made"))
sys.argv = ["setup.py", "-q", "build_py", "--build-lib", "made/wheel"]
runpy.run_path("setup.py", run_name="__main__")
"""


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, built, with the remains of builds, tests and measurements beside them."""
    copy = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.so", "*.py[cod]", ".*_cache", ".hypothesis", ".benchmarks")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    sources = files(copy)
    for name in LEFT_BEHIND:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("left behind")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return copy / "made", sources


def test_the_source_archive_is_the_source_tree(tree):
    made, sources = tree
    (archive,) = made.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
    found = {m.name.partition("/")[2] for m in members}
    written = {name for name in found if name.startswith("lightkernels.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert found - written == sources
    for folder in FOLDERS:
        assert any(name.startswith(folder + "/") for name in found), folder


def test_the_wheel_holds_the_package_alone(tree):
    made, sources = tree
    assert files(made / "wheel") == {name for name in sources if name.startswith("lightkernels/")}


def test_the_installed_files():
    """Of the package under test, if it was installed from a wheel."""
    try:
        distribution = importlib.metadata.distribution("lightkernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("lightkernels is not installed")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable") or distribution.read_text("RECORD") is None:
        pytest.skip("an editable installation has no files of its own")
    assert distribution.files is not None
    names = [p.as_posix() for p in distribution.files if "__pycache__" not in p.parts]
    meta = f"lightkernels-{distribution.version}.dist-info/"
    script = [n for n in names if n.startswith("..")]
    assert len(script) == 1 and Path(script[0]).stem == "lightkernels"
    assert all(n.startswith(("lightkernels/", meta)) for n in names if n not in script)
    assert meta + "licenses/LICENSE" in names
    native = [n for n in names if Path(n).suffix in (".so", ".pyd")]
    assert [n.partition(".")[0] for n in sorted(native)] in (
        ["lightkernels/_C"],
        ["lightkernels/_C", "lightkernels/_cuda"],
    )
    notice = {"lightkernels/CUDA_RUNTIME_NOTICE.txt"} if len(native) == 2 else set()
    assert notice <= set(names)
    package = {n for n in names if n.startswith("lightkernels/")} - set(native) - notice
    sources = {n for n in files(ROOT / "lightkernels") if Path(n).suffix not in (".so", ".pyd", ".pyc", ".txt")}
    assert package == {f"lightkernels/{n}" for n in sources}
