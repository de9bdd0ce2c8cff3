"""What the installation built of the CUDA kernels, in the words of the build itself.

``csrc/build.py`` writes the record once the extension is linked, or once it is clear that there will be
none; ``ilora doctor`` and ``python -m ilora_kernels`` show it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

MODULE = "ilora_kernels._cuda"
RECORD = Path(__file__).parent / "_cuda_build.json"
NEEDED = {True: ("python", "date", "architectures", "nvcc", "source_hash"), False: ("reason",)}
REMEDY = "Install again with nvcc in PATH: ILORA_CUDA=on pip install ."


def read(path: Path = RECORD) -> dict[str, Any] | None:
    """Return the record, or None where no installation has left one.

    Raises:
        ValueError: the file is no record.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no build record ({error}); install again.") from None
    built = record.get("built") if isinstance(record, dict) else None
    if not isinstance(built, bool) or not set(NEEDED[built]) <= record.keys():
        raise ValueError(f"{path} is no build record; install again.")
    return record


def extension_exists() -> bool:
    """Whether this Python finds the compiled module."""
    return importlib.util.find_spec(MODULE) is not None


def why_missing(path: Path = RECORD) -> str:
    """Return in one sentence why there is no compiled module, and what to do."""
    record = read(path)
    if record is None:
        return f"the CUDA kernels were never built here. {REMEDY}"
    if record["built"]:
        return (
            f"the CUDA kernels were built for Python {record['python']}, not for this one. {REMEDY}"
        )
    return f"the CUDA kernels were not built: {record['reason'].rstrip('.')}. {REMEDY}"


def summary(path: Path = RECORD) -> str:
    """Return one line: what was built, when and with what, or why nothing was."""
    record = read(path)
    if record is None or not record["built"] or not extension_exists():
        return why_missing(path)
    found = importlib.import_module(MODULE).SOURCE_HASH
    line = (
        f"built {record['date']} for {', '.join(record['architectures'])} with nvcc "
        f"{record['nvcc']}, sources {record['source_hash']}"
    )
    if record["source_hash"] != found:
        line += f"; but the module is of sources {found}: install again"
    return line
