"""All native code is described by CMakeLists.txt; this file calls CMake and puts the modules into the package.

Environment: LIGHTKERNELS_CUDA=AUTO|ON|OFF. CMake's own variables work too (CMAKE_ARGS, CMAKE_BUILD_PARALLEL_LEVEL).
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA_CHOICES = ("AUTO", "ON", "OFF")


def missing_tools() -> list[str]:
    """Build tools that this machine lacks; as wheels they cost 30 MB, so they are not asked for where they exist."""
    need = []
    try:
        words = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True).stdout.split()
        if tuple(int(part) for part in words[2].split(".")[:2]) < (3, 24):
            need.append("cmake>=3.24")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        need.append("cmake>=3.24")
    if not shutil.which("ninja"):
        need.append("ninja")
    return need


class CMakeBuild(build_ext):
    """One pseudo-extension, one CMake run: lightkernels/_C and, where nvcc is found, lightkernels/_cuda."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Remembered here: setuptools sets inplace to 0 while it runs and then copies by itself.
        self.in_tree = bool(self.inplace or getattr(self, "editable_mode", False))

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cuda = os.environ.get("LIGHTKERNELS_CUDA", "AUTO").upper()
        if cuda not in CUDA_CHOICES:
            raise SystemExit(f"LIGHTKERNELS_CUDA must be one of {', '.join(CUDA_CHOICES)}; got {cuda}")
        in_tree = self.in_tree or getattr(self, "editable_mode", False)
        out = ROOT / "lightkernels" if in_tree else Path(self.get_ext_fullpath(ext.name)).resolve().parent
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        # An editable build keeps its tree, so that a rebuild compiles only what changed. Any other starts empty:
        # a cache left by an isolated build names an environment that is gone.
        build = ROOT / "build" / f"cmake-{tag}" if in_tree else Path(self.build_temp).resolve() / "cmake"
        if not in_tree:
            shutil.rmtree(build, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        build.mkdir(parents=True, exist_ok=True)

        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-DLIGHTKERNELS_CUDA={cuda}", f"-DLK_WARNINGS={'ON' if in_tree else 'OFF'}"]
        ninja = shutil.which("ninja")
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        env = dict(os.environ)
        env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build), "--config", "Release"], check=True, env=env)
        for old in out.glob("_cuda.*"):  # a module of an earlier CUDA build must not outlive it
            if old.suffix in (".so", ".pyd"):
                old.unlink()
        (out / "CUDA_RUNTIME_NOTICE.txt").unlink(missing_ok=True)
        install = ["cmake", "--install", str(build), "--config", "Release", "--prefix", str(out)]
        subprocess.run([*install, "--component", "lightkernels"], check=True, env=env)

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: CMake installed into the source tree, the CUDA module too."""


setup(
    setup_requires=missing_tools(),
    ext_modules=[Extension("lightkernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
