"""How a command ends when it cannot do its work: one sentence on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
from typing import Any

import typer
from safetensors import SafetensorError
from typer.core import TyperGroup

from ilora.errors import InputError

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_SYSTEM_SENTENCES = {
    errno.ENOSPC: "the disk is full; free some space or choose another --out",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another --out",
    errno.EACCES: "access is denied; choose a path that you may use",
    errno.EPERM: "access is denied; choose a path that you may use",
    errno.EROFS: "the disk is read-only; choose another --out",
    errno.ENOENT: "no such file or folder; give one that is there",
    errno.EEXIST: "a file is in the way; choose another path",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file; choose another path",
    errno.EISDIR: "it is a folder; give the path of a file",
}


class CommandGroup(TyperGroup):
    """The root of all commands: turns what a user can do something about into a sentence.

    Anything else is a defect of this program and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise fail(str(error)) from None
        except KeyboardInterrupt as error:
            # A command may have said how to go on.
            raise fail(str(error) or "interrupted", INTERRUPTED) from None
        except (OSError, RuntimeError, SafetensorError) as error:
            sentence = explain(error)
            if sentence is None:
                raise
            raise fail(sentence) from error


def explain(error: BaseException) -> str | None:
    """A sentence for an error of the machine rather than of the program; None for any other."""
    if isinstance(error, OSError) and error.errno in _SYSTEM_SENTENCES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_SYSTEM_SENTENCES[error.errno]}"
    text = str(error)
    # Libraries written in other languages report a full disk and a full GPU in words.
    if "No space left on device" in text:
        return _SYSTEM_SENTENCES[errno.ENOSPC]
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "the GPU's memory is full; lower --micro-batch-size (train) or --batch-size, or set "
            "training.gradient_checkpointing=true"
        )
    return None


def fail(sentence: str, code: int = FAILED) -> typer.Exit:
    """Print the sentence to stderr; return the exception that ends the program with ``code``."""
    print(f"error: {sentence}", file=sys.stderr)
    return typer.Exit(code)
