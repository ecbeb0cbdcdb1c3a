"""Builds the native modules with CMake; everything else is in pyproject.toml.

They are `mdssd._C` and, in an editable install, `mdssd._simt`: the CUDA kernels on the CPU, for the
tests.

Environment: MDSSD_CUDA=auto|on|off (default auto: with CUDA where nvcc is found),
MDSSD_CUDA_ARCHS="90;100"|all|development (default all: what the nvcc found supports; in an editable
install development: those of this machine's GPUs, without one 80 and 90), MDSSD_WERROR=on|off
(default off; on: a warning ends the build), CXX, CUDACXX, CUDAHOSTCXX.
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
    """Path of cmake or ninja: of the Python package, which pip installs for a build, else PATH."""
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
    """Fails with the packages to install where there is no C++ compiler or no Python.h."""
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
    """What a CMake cache cannot change its mind about: a new key needs a fresh cache."""
    parts = [str(ROOT), sys.base_prefix, sys.version, shutil.which("c++"), shutil.which("nvcc")]
    names = ("CXX", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS", "CUDA_HOME")
    parts += [os.environ.get(name) for name in names]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def pybind11_config(build):
    """Folder of pybind11's CMake files in a copy that stays when pip drops its build environment.

    With the original's path, which is new in each isolated build, every file would compile again.
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
    # A process that has the old module mapped keeps it: never write into the file itself.
    target.unlink(missing_ok=True)
    shutil.copy2(source, target)


class CMakeBuild(build_ext):
    """Configures and builds in build/<python tag>, which stays: the next install is incremental."""

    def run(self):
        # `pip install -e .` or `build_ext --inplace`; setuptools hides it while it builds.
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
