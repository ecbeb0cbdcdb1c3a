"""The native build: what it decides about CUDA, what it says of itself, what it refuses."""

import importlib.util
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from mdssd import ops
from mdssd.info import info
from mdssd.ops import _dispatch

ROOT = Path(__file__).resolve().parent.parent

# What nvcc of these versions answers to --list-gpu-code (13 dropped the oldest).
CODE_12_4 = [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90]
CODE_12_8 = [*CODE_12_4, 100, 101, 120]
CODE_13_0 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]


@pytest.fixture(scope="module")
def setup_script():
    spec = importlib.util.spec_from_file_location("mdssd_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def choose_cuda(setup_script, tmp_path):
    """Runs cmake/choose_cuda.cmake as the build does; CMake's script mode needs no compiler."""
    script = tmp_path / "choose.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/choose_cuda.cmake")\n'
        'message("with=${MDSSD_WITH_CUDA}")\n'
        'message("archs=${MDSSD_CUDA_ARCHS_BUILT}")\n'
        'message("reason=${MDSSD_CUDA_OFF_REASON}")\n'
    )

    def choose(cuda="auto", archs="", **environment):
        done = subprocess.run(
            [
                *(setup_script.find_tool("cmake"), f"-DMDSSD_CUDA={cuda}"),
                *(f"-DMDSSD_CUDA_ARCHS={archs}", "-P", script),
            ],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        said = dict(line.split("=", 1) for line in done.stderr.splitlines() if "=" in line)
        return done.returncode, said, " ".join(done.stderr.split())

    return choose


def fake_nvcc(folder, codes=(), fault=""):
    path = folder / "nvcc"
    listed = "\n".join(f"sm_{code}" for code in codes)
    compiles = f"echo '{fault}' >&2; exit 2" if fault else "exit 0"
    lists = f"if [ \"$1\" = --list-gpu-code ]; then echo '{listed}'; exit 0; fi"
    path.write_text(f"#!/bin/sh\n{lists}\n{compiles}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_cuda_value_is_one_of_three(choose_cuda):
    code, _, text = choose_cuda("ON")
    assert code != 0
    assert "MDSSD_CUDA is 'ON'; it must be auto, on or off" in text


def test_off_never_looks_for_nvcc(choose_cuda, tmp_path):
    code, said, _ = choose_cuda("off", CUDACXX=fake_nvcc(tmp_path, CODE_13_0))
    assert (code, said["with"], said["reason"]) == (0, "OFF", "MDSSD_CUDA=off")


def test_auto_without_nvcc_builds_without_cuda_and_says_why(choose_cuda):
    code, said, _ = choose_cuda(CUDACXX="/nowhere/nvcc")
    assert (code, said["with"]) == (0, "OFF")
    assert said["reason"] == "CUDACXX names '/nowhere/nvcc', which does not exist"


def test_auto_with_an_nvcc_that_fails_repeats_its_words(choose_cuda, tmp_path):
    nvcc = fake_nvcc(tmp_path, CODE_13_0, fault="host.h: fatal error: gcc 99 is not supported")
    code, said, _ = choose_cuda(CUDACXX=nvcc)
    assert (code, said["with"]) == (0, "OFF")
    assert "gcc 99 is not supported" in said["reason"] and nvcc in said["reason"]


@pytest.mark.parametrize("fault", [None, "fatal error: gcc 99 is not supported"])
def test_on_without_a_working_nvcc_names_what_to_install(choose_cuda, tmp_path, fault):
    nvcc = fake_nvcc(tmp_path, CODE_13_0, fault=fault) if fault else "/nowhere/nvcc"
    code, _, text = choose_cuda("on", CUDACXX=nvcc)
    assert code != 0
    assert "MDSSD_CUDA=on, but" in text and (fault or "does not exist") in text
    assert "apt install nvidia-cuda-toolkit" in text


@pytest.mark.parametrize(
    "codes, expected",
    [
        (CODE_12_4, "70 75 80 86 89 90"),
        (CODE_12_8, "70 75 80 86 89 90 100 120"),
        (CODE_13_0, "75 80 86 89 90 100 120"),
    ],
)
def test_architectures_follow_the_nvcc_found(choose_cuda, tmp_path, codes, expected):
    code, said, _ = choose_cuda(CUDACXX=fake_nvcc(tmp_path, codes))
    real = expected.split()
    assert (code, said["with"]) == (0, "ON")
    assert said["archs"].split(";") == [f"{arch}-real" for arch in real] + [f"{real[-1]}-virtual"]


def test_architectures_asked_for_are_taken_as_they_are(choose_cuda, tmp_path):
    nvcc = fake_nvcc(tmp_path, CODE_13_0)
    assert choose_cuda(archs="90", CUDACXX=nvcc)[1]["archs"] == "90"
    assert choose_cuda(archs="90a-real;100-virtual", CUDACXX=nvcc)[1]["archs"] == (
        "90a-real;100-virtual"
    )


@pytest.mark.parametrize("archs", ["70", "sm_90", "90;hopper"])
def test_an_architecture_that_nvcc_lacks_is_refused(choose_cuda, tmp_path, archs):
    code, _, text = choose_cuda(archs=archs, CUDACXX=fake_nvcc(tmp_path, CODE_13_0))
    assert code != 0
    assert f"'{archs.split(';')[-1]}' is not an architecture" in text and "120" in text


def test_no_compiler_names_the_packages(setup_script, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup_script.CompileError, match="none was found") as error:
        setup_script.check_compiler()
    assert "apt install g++ python3-dev" in str(error.value)


def test_a_compiler_that_does_not_exist_is_named(setup_script, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-g++ -m64")
    with pytest.raises(setup_script.CompileError, match=r"'no-such-g\+\+', which does not exist"):
        setup_script.check_compiler()


def test_missing_python_headers_name_the_package(setup_script, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", fake_nvcc(tmp_path))
    monkeypatch.setattr(setup_script.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(setup_script.CompileError, match="apt install python3-dev"):
        setup_script.check_compiler()


def test_the_module_knows_how_it_was_built():
    assert _dispatch.native is not None, _dispatch.native_error
    build = _dispatch.native.build_info()
    assert re.search(r"\d+\.\d+", build["compiler"]) and build["build_type"] == "Release"
    if build["cuda"]:
        assert build["nvcc"] and build["cuda_archs"] and build["cuda_runtime"] >= 11080
        assert build["cuda_off_reason"] == ""
    else:
        assert build["cuda_off_reason"]
        assert (build["nvcc"], build["cuda_archs"], build["cuda_runtime"]) == ("", [], 0)


def test_cuda_side_answers_without_a_gpu():
    assert _dispatch.native is not None, _dispatch.native_error
    count = _dispatch.native.cuda_device_count()
    assert count >= 0
    assert _dispatch.native.cuda_device_fault(count) != ""


def test_info_names_versions_devices_threads_and_backends(monkeypatch):
    monkeypatch.setenv("MDSSD_CUDA_ARCHS", "90")
    text = info()
    assert torch.__version__ in text and "MDSSD_CUDA_ARCHS=90" in text
    assert re.search(rf"^threads +{torch.get_num_threads()} ", text, re.MULTILINE)
    assert re.search(r"^device +cpu: \S", text, re.MULTILINE)
    for name, backends in ops.backends().items():
        assert re.search(rf"^  {name} +{', '.join(backends)}$", text, re.MULTILINE)


def test_info_without_the_native_module_says_why(monkeypatch):
    monkeypatch.setattr(_dispatch, "native", None)
    monkeypatch.setattr(_dispatch, "native_error", "No module named 'mdssd._C'")
    assert re.search(r"^cpp +not available: No module named", info(), re.MULTILINE)
