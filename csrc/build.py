"""Builds ``ilora_kernels/_cuda``: nvcc for everything, ninja for parallel and incremental work.

Needs nothing but the standard library, nvcc, ninja and pybind11's headers; torch is not involved, and
the result works with every torch. ``setup.py`` calls :func:`build`; by hand, for a look at the
compiler's words and with warnings as errors:

    python csrc/build.py --strict --out /tmp/cuda
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
EXTENSION = "_cuda" + str(sysconfig.get_config_var("EXT_SUFFIX"))
RECORD = "_cuda_build.json"  # beside the extension
# One of each generation; binaries of 8.0 run on 8.6 and 8.9 too. PTX of the newest is for its successors.
DEFAULT_ARCHITECTURES = ("80", "90", "100", "120")
FLAGS = (
    "-O3",
    "-std=c++17",
    "--threads=4",  # architectures side by side
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
)
# A spilled register is a warning of ptxas, and with it an error.
STRICT_FLAGS = ("-Werror=all-warnings", "-Xcompiler=-Werror", "-Xptxas=-warn-spills")


class BuildError(Exception):
    """Why the extension was not built, in a sentence or in the compiler's words."""


def find_nvcc() -> Path | None:
    """Return nvcc of CUDA_HOME or CUDA_PATH, or else the one on PATH."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            nvcc = Path(home) / "bin" / "nvcc"
            if not nvcc.exists():
                raise BuildError(
                    f"{variable} is {home!r}, but there is no {nvcc}; correct or unset it."
                )
            return nvcc
    found = shutil.which("nvcc")
    return Path(found) if found else None


def architectures(nvcc: Path, wanted: str) -> list[str]:
    """Return compute capabilities as in ``["80", "90+PTX"]``.

    Args:
        wanted: the value of ILORA_CUDA_ARCHS, as in ``"80;90+PTX"`` or ``"8.0 9.0"``; empty for the
            default, as far as this nvcc knows it.
    """
    listed = _output([str(nvcc), "--list-gpu-arch"]).split()
    known = {name.removeprefix("compute_") for name in listed}
    if not wanted.strip():
        default = [arch for arch in DEFAULT_ARCHITECTURES if arch in known]
        if not default:
            raise BuildError(f"{nvcc} knows none of {DEFAULT_ARCHITECTURES}; set ILORA_CUDA_ARCHS.")
        return [*default[:-1], default[-1] + "+PTX"]
    chosen = [name for name in re.split(r"[;,\s]+", wanted.replace(".", "")) if name]
    for name in chosen:
        parts = re.fullmatch(r"(\d+)([af]?)(\+PTX)?", name)
        if parts is None or parts[1] not in known:
            raise BuildError(
                f"ILORA_CUDA_ARCHS is {wanted!r}, where {name!r} is no architecture that {nvcc} knows; "
                "give compute capabilities as in '80;90+PTX', among "
                f"{', '.join(sorted(known, key=lambda arch: (len(arch), arch)))}."
            )
    return chosen


def source_files() -> list[Path]:
    """Return what is compiled: every launcher, and the bindings."""
    return [*sorted(SOURCES.glob("launch/*.cu")), SOURCES / "bindings.cpp"]


def hash_of(folders: list[Path]) -> str:
    """Return a hash of all native sources below some folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(
            p for p in folder.rglob("*") if p.suffix in (".cu", ".cuh", ".h", ".cpp")
        ):
            digest.update(f"{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def source_hash() -> str:
    """Return a hash of the sources that an extension is built from."""
    return hash_of([SOURCES])


def build(out: Path, work: Path, *, strict: bool = False) -> dict[str, Any]:
    """Compile and link ``out / EXTENSION``, then write ``out / RECORD``; return the record.

    Args:
        out: the folder of the extension, ``ilora_kernels``.
        work: where object files are kept, for the next build.
        strict: warnings and spilled registers are errors.

    Raises:
        BuildError: something that is needed is missing, or a compiler refused.
    """
    start = time.perf_counter()
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError("nvcc was not found in CUDA_HOME, CUDA_PATH or PATH.")
    archs = architectures(nvcc, os.environ.get("ILORA_CUDA_ARCHS", ""))
    flags = [*FLAGS, *(STRICT_FLAGS if strict else ()), *_generate_code(archs)]
    work.mkdir(parents=True, exist_ok=True)
    (work / "build.ninja").write_text(_ninja_file(nvcc, flags, out.resolve() / EXTENSION))
    out.mkdir(parents=True, exist_ok=True)
    _run_ninja(work)
    record = {
        "built": True,
        "architectures": archs,
        "nvcc": _version(_output([str(nvcc), "--version"])),
        "flags": flags,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "source_hash": source_hash(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_record(out, record)
    return record


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write ``out / RECORD``: what was built, or why nothing was."""
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{RECORD}.{os.getpid()}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(out / RECORD)


def _generate_code(archs: list[str]) -> list[str]:
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _ninja_file(nvcc: Path, flags: list[str], extension: Path) -> str:
    include = [pybind11_headers(), sysconfig.get_paths()["include"]]
    bindings_flags = [f"-isystem={path}" for path in include]
    bindings_flags.append(f'-DILORA_SOURCE_HASH=\\"{source_hash()}\\"')
    lines = [
        f"nvcc = {_escape(str(nvcc))}",
        f"flags = {' '.join(flags)}",
        "rule compile",
        "  command = $nvcc $flags $extra -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $in",
        "rule link",
        # First under another name: an extension is there whole or not at all.
        "  command = $nvcc -shared -cudart=static $in -o $out.partial && mv $out.partial $out",
        "  description = linking $out",
    ]
    objects = []
    for source in source_files():
        objects.append(f"{source.stem}.o")
        lines.append(f"build {objects[-1]}: compile {_escape(str(source.resolve()))}")
        if source.suffix == ".cpp":
            lines.append("  extra = " + " ".join(_quoted(flag) for flag in bindings_flags))
    lines.append(f"build {_escape(str(extension))}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def pybind11_headers() -> Path:
    """Return the folder of pybind11's headers: its own package's, or the copy that torch brings."""
    for package in ("pybind11", "torch"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / "include" / "pybind11" / "pybind11.h").exists():
                return Path(folder) / "include"
    raise BuildError("pybind11 is not installed; pip install pybind11.")


def _escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _quoted(flag: str) -> str:
    return f"'{flag}'" if " " in flag else flag


def _run_ninja(work: Path) -> None:
    ninja = _find_ninja()
    done = subprocess.run(
        [ninja, "-C", str(work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        failed = done.stdout.partition("FAILED:")
        raise BuildError(f"The CUDA kernels did not compile:\n{(failed[1] + failed[2]).strip()}")


def _find_ninja() -> str:
    try:
        import ninja
    except ModuleNotFoundError:
        found = shutil.which("ninja")
        if found is None:
            raise BuildError("ninja is not installed; pip install ninja.") from None
        return found
    return str(Path(ninja.BIN_DIR) / "ninja")


def _version(text: str) -> str:
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return found[1] if found else "unknown"


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{command[0]} does not run: {error}.") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Build the CUDA kernels outside of an installation."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the extension")
    parser.add_argument("--work", type=Path, help="folder of the object files [OUT/objects]")
    parser.add_argument("--strict", action="store_true", help="warnings and spills are errors")
    arguments = parser.parse_args()
    work = arguments.work or arguments.out / "objects"
    try:
        record = build(arguments.out, work, strict=arguments.strict)
    except BuildError as error:
        sys.exit(str(error))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
