"""Everything is declared in pyproject.toml; this file builds the CUDA kernels, where they can be built.

ILORA_CUDA says whether: ``auto`` (or nothing) where nvcc is found, ``on`` or else fail, ``off`` never.
Either way ``ilora_kernels/_cuda_build.json`` says what came of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

HERE = Path(__file__).parent.resolve()
MODES = ("auto", "on", "off")
OLDEST_SETUPTOOLS = 77  # as in pyproject.toml, whose licence older ones do not understand

if int(__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:  # only without build isolation
    sys.exit(
        f"setuptools is {__version__}, too old to read pyproject.toml; "
        f'run: pip install "setuptools>={OLDEST_SETUPTOOLS}"'
    )


def _native() -> ModuleType:
    # By its path: a build backend does not put the folder of setup.py among Python's.
    spec = importlib.util.spec_from_file_location("ilora_csrc_build", HERE / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = _native()


def _mode() -> str:
    mode = os.environ.get("ILORA_CUDA") or "auto"
    if mode not in MODES:
        sys.exit(f"ILORA_CUDA is {mode!r}; it must be one of {', '.join(MODES)}.")
    return mode


def _why_not() -> str | None:
    """Why nothing shall be compiled; None where it shall."""
    if _mode() == "off":
        return "ILORA_CUDA was off."
    if _mode() == "on":
        return None
    try:
        found = native.find_nvcc()
    except native.BuildError as error:  # images without the compiler set CUDA_HOME too
        return str(error)
    return None if found else "nvcc was not found in CUDA_HOME, CUDA_PATH or PATH."


class BuildKernels(build_ext):
    """Hands the one extension to ``csrc/build.py``."""

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        work = HERE / "build" / f"cuda-{sys.implementation.cache_tag}"
        try:
            native.build(out, work)
        except native.BuildError as error:
            _forget(out, str(error))
            if _mode() == "on":
                raise CompileError(f"ILORA_CUDA is on, but: {error}") from None
            print(f"Installing without CUDA kernels: {error}", file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        """Of an editable installation: the record goes where the extension goes."""
        super().copy_extensions_to_source()
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))
            record = json.loads((built.parent / native.RECORD).read_text())
            if record["built"]:
                native.write_record(HERE / "ilora_kernels", record)
            else:
                _forget(HERE / "ilora_kernels", record["reason"])


class BuildPython(build_py):
    """Leaves the record of an installation without CUDA kernels."""

    def run(self) -> None:
        super().run()
        if reason := _why_not():
            in_place = getattr(self, "editable_mode", False)
            _forget((HERE if in_place else Path(self.build_lib)) / "ilora_kernels", reason)


def _forget(out: Path, reason: str) -> None:
    (out / native.EXTENSION).unlink(missing_ok=True)  # an older one is not what was asked for
    native.write_record(out, {"built": False, "reason": reason})


# Optional: setuptools goes on if the file is not there in the end.
kernels = Extension("ilora_kernels._cuda", sources=[], optional=_mode() == "auto")
setup(
    ext_modules=[] if _why_not() else [kernels],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython},
)
