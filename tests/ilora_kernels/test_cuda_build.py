"""Building the CUDA kernels: what is compiled, what is said where nothing can be."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ilora_kernels import build_record

from .cuda_on_cpu import build_module

ROOT = Path(__file__).parents[2]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


build = build_module()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA_HOME whose nvcc knows two architectures and compiles nothing."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "--list-gpu-arch) echo compute_80 compute_90;;\n"
        "--version) echo release 13.0, V13.0.88;;\n"
        '*) echo "shrink.cu(1): error: a made-up one" >&2; exit 1;;\n'
        "esac\n"
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parents[1]))
    monkeypatch.delenv("ILORA_CUDA_ARCHS", raising=False)
    return nvcc


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without nvcc."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


# ---- The compilation


@needs_nvcc
@pytest.mark.slow
def test_all_architectures_compile_without_warnings_or_spills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ILORA_CUDA_ARCHS", raising=False)
    record = build.build(tmp_path, tmp_path / "objects", strict=True)
    assert record == json.loads((tmp_path / build.RECORD).read_text())
    assert record["architectures"][-1].endswith("+PTX")
    assert {"80", "90"} <= set(record["architectures"])
    # Nothing of torch, no driver: the module loads anywhere and says what CUDA says.
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_cuda', {str(tmp_path / build.EXTENSION)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules\n"
        "print(module.SOURCE_HASH, module.why_unusable(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found, _, reason = done.stdout.strip().partition(" ")
    assert found == record["source_hash"]
    assert reason == "None" or "cudaError" in reason
    for arch in ("80", "90", "100", "120"):
        if arch in {name.removesuffix("+PTX") for name in record["architectures"]}:
            _check_machine_code(tmp_path / "objects", arch)
            if int(arch) >= 90:
                _check_chain(tmp_path / "objects", arch)
    # Nothing changed, so nothing is compiled.
    assert build.build(tmp_path, tmp_path / "objects", strict=True)["seconds"] < 3


def _check_machine_code(objects: Path, arch: str) -> None:
    """Tensor cores; whole loads and stores of 16 bytes; no register in memory."""
    for name in ("shrink", "expand", "column_sums"):
        functions = _machine_code(objects / f"{name}.o", arch)
        symbols = [function.partition("\n")[0] for function in functions]
        assert sum(f"{name}_mma" in symbol for symbol in symbols) >= 9
        assert sum(f"{name}_mmaIf" in symbol for symbol in symbols) >= 3  # of float
        for symbol, function in zip(symbols, functions, strict=True):
            assert not re.search(r" (LDL|STL)[. ]", function)
            if f"{name}_mma" in symbol:
                step = "HMMA.1688.F32.TF32" if f"{name}_mmaIf" in symbol else "HMMA.16816.F32"
                assert step in function
                assert "LDG.E.128" in function
                assert ("STG.E.128" in function) == (name == "expand")
                # What an expansion stores, it stores in units of 16 bytes.
                assert name != "expand" or "STG.E desc" not in function


def _check_chain(objects: Path, arch: str) -> None:
    """Each kernel waits before it touches memory, and only then lets the next one start."""
    for name in ("shrink", "expand", "column_sums", "finish"):
        functions = _machine_code(objects / f"{name}.o", arch)
        assert functions
        for function in functions:
            before, wait, after = function.partition("ACQBULK")
            assert wait
            assert not re.search(r" (LDG|STG|LD|ST|PREEXIT)[.; ]", before)
            assert "PREEXIT" in after


def _machine_code(file: Path, arch: str) -> list[str]:
    """The kernels of an object file."""
    command = [_cuobjdump(), "-sass", f"-arch=sm_{arch}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split("Function : ")[1:]


def _cuobjdump() -> str:
    shipped = Path(importlib.import_module("triton").__file__ or "").parent
    return shutil.which("cuobjdump") or str(shipped / "backends/nvidia/bin/cuobjdump")


@needs_nvcc
@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("__global__ void f(float* x) { int unused; x[0] = 1; }", "unused"),
        (
            "__global__ void __launch_bounds__(1024, 2) f(float* x) { float y[64];\n"
            "#pragma unroll\n for (int i = 0; i < 64; ++i) y[i] = x[i];\n __syncthreads();\n"
            "#pragma unroll\n for (int i = 0; i < 64; ++i) x[i] = y[63 - i] * y[i]; }",
            "spill",
        ),
    ],
    ids=["warning", "spill"],
)
def test_a_strict_build_refuses_warnings_and_spills(
    tmp_path: Path, code: str, complaint: str
) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(code)
    command = ["nvcc", *build.FLAGS, *build.STRICT_FLAGS, "-arch=sm_90", "-c", str(source)]
    command += ["-o", str(tmp_path / "bad.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert complaint in done.stderr + done.stdout


def test_every_launcher_is_compiled() -> None:
    names = {path.name for path in build.source_files()}
    assert {path.name for path in (ROOT / "csrc" / "launch").glob("*.cu")} < names
    assert "bindings.cpp" in names


def test_every_kernel_waits_first_for_those_before_it() -> None:
    text = "".join(p.read_text() for p in sorted((ROOT / "csrc" / "kernels").glob("*.cuh")))
    bodies = re.findall(r"__global__ [^{;]*\{\s*(.*)", text)
    assert len(bodies) == text.count("__global__ ") == 7
    assert set(bodies) == {"wait_for_earlier_kernels();"}


# ---- Architectures


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", ["80", "90+PTX"]),
        ("90", ["90"]),
        ("8.0;9.0+PTX", ["80", "90+PTX"]),
        ("80, 90a", ["80", "90a"]),
    ],
)
def test_architectures_are_chosen(home: Path, wanted: str, chosen: list[str]) -> None:
    assert build.architectures(home, wanted) == chosen


@pytest.mark.parametrize("wanted", ["100", "sm_90", "90 cheap"])
def test_an_architecture_that_nvcc_does_not_know_is_refused(home: Path, wanted: str) -> None:
    with pytest.raises(build.BuildError, match=r"ILORA_CUDA_ARCHS is .* among 80, 90\."):
        build.architectures(home, wanted)


# ---- What is missing or fails


def test_a_machine_without_nvcc_is_told_so(nowhere: None, tmp_path: Path) -> None:
    assert build.find_nvcc() is None
    with pytest.raises(build.BuildError, match="nvcc was not found"):
        build.build(tmp_path / "out", tmp_path / "work")


def test_a_cuda_home_without_nvcc_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="CUDA_HOME is"):
        build.find_nvcc()


def test_a_failed_compilation_gives_the_words_of_the_compiler_and_leaves_nothing(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(build.BuildError, match="a made-up one"):
        build.build(out, tmp_path / "work")
    assert not (out / build.EXTENSION).exists()
    assert not (out / build.RECORD).exists()


# ---- setup.py


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what an installation of ilora_kernels needs."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("*.so", "*.json", "__pycache__")
    for name in ("csrc", "ilora_kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    return copy


def _setup(tree: Path, mode: str, *commands: str) -> tuple[int, str, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "setup.py", *commands, f"--build-lib={tree / 'lib'}"],
        cwd=tree,
        env=os.environ | {"ILORA_CUDA": mode},
        capture_output=True,
        text=True,
        check=False,
    )
    path = tree / "lib" / "ilora_kernels" / build.RECORD
    record = json.loads(path.read_text()) if path.exists() else {}
    return done.returncode, done.stdout + done.stderr, record


def test_off_never_compiles_and_says_so(home: Path, tree: Path) -> None:
    code, _, record = _setup(tree, "off", "build")
    assert code == 0
    assert record == {"built": False, "reason": "ILORA_CUDA was off."}


def test_on_fails_with_the_words_of_the_compiler(home: Path, tree: Path) -> None:
    code, output, record = _setup(tree, "on", "build")
    assert code != 0
    assert "a made-up one" in output
    assert record["built"] is False


def test_auto_goes_on_without_kernels_and_keeps_the_words_of_the_compiler(
    home: Path, tree: Path
) -> None:
    code, _, record = _setup(tree, "auto", "build")
    assert code == 0
    assert record["built"] is False
    assert "a made-up one" in str(record["reason"])


def test_auto_without_nvcc_installs_python_alone(nowhere: None, tree: Path) -> None:
    code, _, record = _setup(tree, "auto", "build")
    assert code == 0
    assert "nvcc was not found" in str(record["reason"])


def test_auto_with_a_cuda_home_without_nvcc_installs_python_alone(home: Path, tree: Path) -> None:
    home.unlink()
    code, _, record = _setup(tree, "auto", "build")
    assert code == 0
    assert record["built"] is False
    assert "correct or unset it" in str(record["reason"])


def test_on_without_nvcc_fails(nowhere: None, tree: Path) -> None:
    code, output, _ = _setup(tree, "on", "build")
    assert code != 0
    assert "nvcc was not found" in output


def test_another_word_than_auto_on_or_off_is_refused(tree: Path) -> None:
    code, output, _ = _setup(tree, "perhaps", "build")
    assert code != 0
    assert "ILORA_CUDA is 'perhaps'" in output


def test_a_setuptools_that_is_too_old_is_told_with_the_remedy(tree: Path) -> None:
    """Python 3.11 brings one, and without build isolation nothing updates it."""
    old = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", old], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("setuptools is 65.5.0, too old")
    needed = re.search(r'"(setuptools>=\d+)"', (ROOT / "pyproject.toml").read_text())
    assert needed
    assert f'pip install "{needed[1]}"' in done.stderr


# ---- The record


def test_the_record_of_a_failure_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert "never built here" in build_record.why_missing(path)
    path.write_text(json.dumps({"built": False, "reason": "nvcc was not found."}))
    assert "nvcc was not found. Install again" in build_record.why_missing(path)
    assert build_record.summary(path) == build_record.why_missing(path)
    known = dict.fromkeys(("date", "architectures", "nvcc", "source_hash"), "")
    path.write_text(json.dumps({"built": True, "python": "2.7"} | known))
    assert "built for Python 2.7, not for this one" in build_record.why_missing(path)


NO_RECORDS = [
    b"{",
    b"[]",
    b"{}",
    b"\xee\x00",
    b'{"built": true}',
    b'{"built": false}',
    b'{"built": 2}',
]


@pytest.mark.parametrize("content", NO_RECORDS)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no build record"):
        build_record.read(path)


def test_the_module_says_what_runs_and_what_was_built() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ilora_kernels"], capture_output=True, text=True, check=True
    )
    assert "CUDA kernels: " in done.stdout
    assert done.stdout.startswith("triton")
