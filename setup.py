"""Builds the native modules with CMake. Everything else is in pyproject.toml.

The modules are `mdssd._C` and, in an editable install, `mdssd._simt`, which runs the CUDA kernels
on the CPU for the tests.

Environment variables:
    MDSSD_CUDA: auto, on or off. Default: auto, which builds the CUDA backend if nvcc is found.
    MDSSD_CUDA_ARCHS: all, ends, development or a list such as "90;100". "all", the default,
        compiles for every supported architecture that nvcc knows, "ends" for the oldest and the
        newest of them. "development", the default of an editable install, compiles for this
        machine's GPUs, or for 80 and 90 if it has none.
    MDSSD_WERROR: on or off (default). "on" makes compiler warnings and register spills errors.
    CXX, CUDACXX, CUDAHOSTCXX: the compilers.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def find_tool(name):
    """Return the path of cmake or ninja, from its Python package if installed, else from PATH."""
    try:
        module = __import__(name)
        folder = module.CMAKE_BIN_DIR if name == "cmake" else module.BIN_DIR
        tool = shutil.which(name, path=folder)
    except (ImportError, AttributeError):
        tool = None
    tool = tool or shutil.which(name)
    if tool is None:
        raise CompileError(f"mdssd needs {name} to build its native module: pip install {name}")
    return tool


def check_compiler():
    """Raise CompileError, naming the packages to install, without a C++ compiler or Python.h."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    if not any(shutil.which(name) for name in named or ["c++", "g++", "clang++"]):
        what = f"CXX names {named[0]!r}, which does not exist" if named else "none was found"
        raise CompileError(
            f"mdssd needs a C++17 compiler to build its native module, and {what}.\n"
            "Install one and run the same command again:\n"
            "  Debian, Ubuntu: apt install g++ python3-dev   (or build-essential python3-dev)\n"
            "  Fedora:         dnf install gcc-c++ python3-devel"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise CompileError(
            f"mdssd needs the Python headers to build its native module: {header} does not exist.\n"
            "Install them and run the same command again:\n"
            "  Debian, Ubuntu: apt install python3-dev\n"
            "  Fedora:         dnf install python3-devel"
        )


def toolchain_key():
    """Return a hash of the settings that CMake only reads when it creates its cache."""
    parts = [str(ROOT), sys.base_prefix, sys.version, shutil.which("c++"), shutil.which("nvcc")]
    names = ("CXX", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS", "CUDA_HOME")
    parts += [os.environ.get(name) for name in names]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def pybind11_config(build):
    """Return the folder of pybind11's CMake files in a copy that outlives pip's build environment.

    pip puts the original in a new folder for every build, so all files would be compiled again.
    """
    import pybind11

    copy = build / f"pybind11-{pybind11.__version__}"
    if not copy.exists():
        partial = build / "pybind11-partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(Path(pybind11.__file__).parent, partial)
        partial.rename(copy)
    return copy / "share" / "cmake" / "pybind11"


def run(command):
    try:
        subprocess.run([str(part) for part in command], check=True)
    except subprocess.CalledProcessError as error:
        raise CompileError("the native build of mdssd failed: see the messages above") from error


def replace(target, source):
    target.parent.mkdir(parents=True, exist_ok=True)
    # A running process may have mapped the old file, so it must not be overwritten in place.
    target.unlink(missing_ok=True)
    shutil.copy2(source, target)


class CMakeBuild(build_ext):
    """Configure and build in build/<python tag>, which is kept for incremental builds."""

    def run(self):
        # True for `pip install -e .` and `build_ext --inplace`. setuptools resets it later.
        self.development = bool(self.inplace)
        super().run()

    def build_extension(self, ext):
        check_compiler()
        cmake = find_tool("cmake")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build.mkdir(parents=True, exist_ok=True)
        key, stamp = toolchain_key(), build / "toolchain"
        fresh = not stamp.exists() or stamp.read_text() != key
        archs = "development" if self.development else "all"
        configure = [
            *([cmake, "--fresh"] if fresh else [cmake]),
            *("-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_config(build)}",
            f"-DMDSSD_CUDA={os.environ.get('MDSSD_CUDA') or 'auto'}",
            f"-DMDSSD_CUDA_ARCHS={os.environ.get('MDSSD_CUDA_ARCHS') or archs}",
            f"-DMDSSD_SIMT={'on' if self.development else 'off'}",
            f"-DCMAKE_COMPILE_WARNING_AS_ERROR={os.environ.get('MDSSD_WERROR') or 'off'}",
        ]
        run(configure)
        stamp.write_text(key)
        run([cmake, "--build", build])
        replace(target, build / target.name)
        if self.development:
            simt = Path(self.get_ext_filename("mdssd._simt"))
            replace(ROOT / simt, build / simt.name)
        print((build / "backends.txt").read_text(), flush=True)


if __name__ == "__main__":
    setup(ext_modules=[Extension("mdssd._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
