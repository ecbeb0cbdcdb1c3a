"""The native build: its decisions about CUDA, its report on itself, its errors."""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdssd import ops
from mdssd.info import info
from mdssd.ops import _modules

ROOT = Path(__file__).resolve().parents[2]

# The output of nvcc --list-gpu-code in these versions; 13 dropped the oldest architectures.
CODE_12_4 = [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90]
CODE_12_8 = [*CODE_12_4, 100, 101, 120]
CODE_13_0 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]


def load(path):
    spec = importlib.util.spec_from_file_location(f"mdssd_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup_script():
    return load(ROOT / "setup.py")


@pytest.fixture(scope="module")
def resources():
    return load(ROOT / "tools" / "cuda_resources.py")


@pytest.fixture
def choose_cuda(setup_script, tmp_path):
    """A function that runs cmake/choose_cuda.cmake in CMake's script mode, without a compiler."""
    script = tmp_path / "choose.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/choose_cuda.cmake")\n'
        'message("with=${MDSSD_WITH_CUDA}")\n'
        'message("archs=${MDSSD_CUDA_ARCHS_BUILT}")\n'
        'message("reason=${MDSSD_CUDA_OFF_REASON}")\n'
    )

    def choose(cuda="auto", archs="all", **environment):
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
    """Write an nvcc that lists these architectures, and compiles unless there is a fault."""
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


def test_auto_with_a_failing_nvcc_repeats_its_message(choose_cuda, tmp_path):
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
    *real, newest = expected.split()
    # A GPU of 110 can compile PTX for 100, but not for 120.
    virtual = ["100", newest] if "100" in real else [newest]
    assert (code, said["with"]) == (0, "ON")
    assert said["archs"].split(";") == [
        *(f"{arch}-real" for arch in (*real, newest)),
        *(f"{arch}-virtual" for arch in virtual),
    ]


@pytest.mark.parametrize(
    "said, expected",
    [
        ("exit 9", "80-real;90-real;90-virtual"),  # no GPU
        ("echo 9.0; echo 9.0", "90-real"),
        ("echo 8.9; echo 12.0", "89-real;120-real"),
        ("echo 6.1", "80-real;90-real;90-virtual"),  # nvcc 13 builds nothing for it
        ("echo No devices were found", "80-real;90-real;90-virtual"),
    ],
)
def test_development_builds_for_the_gpus_here(choose_cuda, tmp_path, said, expected):
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\n{said}\n")
    nvidia_smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, said, _ = choose_cuda(
        archs="development", CUDACXX=fake_nvcc(tmp_path, CODE_13_0), PATH=path
    )
    assert (code, said["archs"]) == (0, expected)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_the_nightly_run_has_what_the_usual_one_leaves_out():
    given = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "NIGHTLY", "MFLAGS")}

    def commands(*targets):
        made = subprocess.run(
            ["make", "-n", *targets],
            cwd=ROOT,
            env=given,
            check=True,
            capture_output=True,
            text=True,
        )
        return made.stdout

    usual, nightly = commands("test", "simt-check", "ptx-check"), commands("nightly")
    assert "--nightly" not in usual and "in ; do" in usual
    assert {"make test", "make simt-check", "make ptx-check", "make lint &"} <= {
        line.partition(" #")[0] for line in (ROOT / ".ci" / "run").read_text().splitlines()
    }
    assert usual.count("pytest -q") == nightly.count("--dist worksteal --nightly")
    for more in ("in 1 2 3; do", "ptx_check.py --nightly", "-DMDSSD_CUDA_ARCHS=all"):
        assert more in nightly and more not in usual


def test_requested_architectures_are_used_unchanged(choose_cuda, tmp_path):
    nvcc = fake_nvcc(tmp_path, CODE_13_0)
    assert choose_cuda(archs="90", CUDACXX=nvcc)[1]["archs"] == "90"
    assert choose_cuda(archs="90a-real;100-virtual", CUDACXX=nvcc)[1]["archs"] == (
        "90a-real;100-virtual"
    )


@pytest.mark.parametrize(
    "codes, expected",
    [
        (CODE_12_4, "70-real;90-real;90-virtual"),
        (CODE_12_8, "70-real;120-real;120-virtual"),
        (CODE_13_0, "75-real;120-real;120-virtual"),
        ([90], "90-real;90-virtual"),
    ],
)
def test_the_ends_are_the_oldest_and_the_newest_architecture(
    choose_cuda, tmp_path, codes, expected
):
    code, said, _ = choose_cuda(archs="ends", CUDACXX=fake_nvcc(tmp_path, codes))
    assert (code, said["archs"]) == (0, expected)


@pytest.mark.parametrize("archs", ["70", "sm_90", "90;hopper"])
def test_an_architecture_that_nvcc_lacks_is_an_error(choose_cuda, tmp_path, archs):
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
    assert _modules.native is not None, _modules.native_error
    build = _modules.native.build_info()
    assert re.search(r"\d+\.\d+", build["compiler"]) and build["build_type"] == "Release"
    if build["cuda"]:
        assert build["nvcc"] and build["cuda_archs"] and build["cuda_runtime"] >= 11080
        assert build["cuda_off_reason"] == ""
    else:
        assert build["cuda_off_reason"]
        assert (build["nvcc"], build["cuda_archs"], build["cuda_runtime"]) == ("", [], 0)


def test_cuda_queries_work_without_a_gpu():
    assert _modules.native is not None, _modules.native_error
    count = _modules.native.cuda_device_count()
    assert count >= 0
    assert _modules.native.cuda_device_fault(count) != ""


def test_no_kernel_spills_and_the_report_is_fresh(resources):
    assert resources.faults() == []


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4pairv' for 'sm_75'
ptxas info    : Function properties for _Z4pairv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 4096 bytes smem, 392 bytes cmem[0]
ptxas info    : Compile time = 3.2 ms
ptxas info    : Compiling entry function '_Z4pairv' for 'sm_90'
ptxas info    : Function properties for _Z4pairv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers
"""


def test_the_report_reads_ptxas(resources):
    assert [str(kernel) for kernel in resources.parse_ptxas(PTXAS)] == [
        "_Z4pairv  sm_75  28 registers  4096 shared  0 stack  0 spilled",
        "_Z4pairv  sm_90  22 registers  0 shared  16 stack  20 spilled",
    ]


def test_the_report_detects_spills_and_changed_code(resources, monkeypatch, tmp_path):
    kernel, header = tmp_path / "pair.cu", tmp_path / "sum.h"
    kernel.write_text('#include "sum.h"\n__global__ void pair() {}\n')
    header.write_text("float sum();\n")
    monkeypatch.setattr(resources, "CUDA", tmp_path)
    monkeypatch.setattr(resources, "REPORT", tmp_path / "resources.txt")
    stale = ["pair.cu: the report is stale: make resources"]
    assert resources.faults() == stale
    line = "pair  sm_75  28 registers  0 shared  0 stack  {} spilled"
    head = f"# nvcc 13.0.88; by\n\n# pair.cu {resources.fingerprint(kernel)}\n"
    resources.REPORT.write_text(head + line.format(0) + "\n")
    assert resources.faults() == []
    assert resources.read_report()[0] == "13.0.88"
    header.write_text("// Adds.\nfloat\n  sum();  /* all */\n")
    assert resources.faults() == []
    header.write_text("double sum();\n")
    assert resources.faults() == stale
    header.write_text("float sum();\n")
    resources.REPORT.write_text(head + line.format(10) + "\n")
    assert resources.faults() == [f"pair.cu: spills: {line.format(10)}"]


@pytest.mark.parametrize(
    "demangled, short",
    [
        ("(anonymous namespace)::answer_kernel(int*)", "answer_kernel"),
        ("void mdssd::(anonymous namespace)::sum_kernel<mdssd::Half>(mdssd::Half*)", None),
        ("void mdssd::_GLOBAL__N__a9_5_pair_cu_5f::sum_kernel<mdssd::Half>(void (*)(int))", None),
    ],
)
def test_the_report_names_kernels_briefly(resources, demangled, short):
    assert resources.short_name(demangled) == (short or "sum_kernel<Half>")


def test_gpu_check_lists_its_steps_and_reads_reports(capsys, monkeypatch):
    gpu_check = load(ROOT / "tools" / "gpu_check.py")
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "--dry-run"])
    assert gpu_check.main() == 0
    listed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed[:2] == ["build", "info"] and listed[-8:] == [
        f"{tool}-{backend}" for backend in ("cuda", "triton") for tool in gpu_check.TOOLS
    ]
    report = gpu_check.ElementTree.fromstring(
        "<testsuites><testsuite><testcase/><testcase><failure/></testcase>"
        '<testcase><skipped message="no second GPU"/></testcase></testsuite></testsuites>'
    )
    assert gpu_check.counts(report) == {
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "why_skipped": {"no second GPU": 1},
    }


def test_info_names_versions_devices_threads_and_backends(monkeypatch):
    monkeypatch.setenv("MDSSD_CUDA_ARCHS", "90")
    text = info()
    assert torch.__version__ in text and "MDSSD_CUDA_ARCHS=90" in text
    assert re.search(rf"^threads +{torch.get_num_threads()} ", text, re.MULTILINE)
    assert re.search(r"^device +cpu: \S", text, re.MULTILINE)
    for name, backends in ops.backends().items():
        assert re.search(rf"^  {name} +{', '.join(backends)}$", text, re.MULTILINE)


def test_info_without_the_native_module_says_why(monkeypatch):
    monkeypatch.setattr(_modules, "native", None)
    monkeypatch.setattr(_modules, "native_error", "No module named 'mdssd._C'")
    assert re.search(r"^cpp +not available: No module named", info(), re.MULTILINE)
    assert "\n          every operator runs as the slow reference until mdssd is" in info()


def test_without_triton_everything_else_works():
    code = """
import sys
sys.modules["triton"] = None  # an import of it fails
import torch, mdssd
from mdssd import ops
from mdssd.info import info
print(info())
assert not any("triton" in row for row in ops.backends().values())
print(ops.box_iou(torch.rand(2, 4), torch.rand(3, 4)).shape)
with ops.backend("triton"):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"^triton +not installed: pip install triton", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("torch.Size([2, 3])\n")
    assert "RuntimeError: backend: 'triton' is not available here; available: " in done.stderr


def test_info_says_why_triton_does_not_import(monkeypatch, tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('libtriton.so is of another machine')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert re.search(r"^triton +does not import: libtriton.so is of", info(), re.MULTILINE)
