"""Libraries on their best behaviour: what they tell developers is not for users of a command."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

from ilora.errors import InputError


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block libraries write to stderr only, without warnings and loading bars.

    stdout is for results: whoever pipes a command gets nothing else. Progress bars that show how
    far the work is stay where they are, on stderr.

    Raises:
        InputError: ``ILORA_BACKEND`` names a backend that does not exist or run here.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    # The tokenizer's threads and a data loader's processes do not mix; it would say so each time.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights: short, and not the user's business
    _check_backend()
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", module=r"torch|transformers|peft|accelerate")
        yield


def _check_backend() -> None:
    requested = os.environ.get("ILORA_BACKEND")
    if not requested:
        return
    try:
        from ilora_kernels import backends
    except ValueError as error:
        raise InputError(str(error)) from None
    if reason := backends()[requested]:
        raise InputError(
            f"ILORA_BACKEND is {requested}, which cannot be used here ({reason.rstrip('.')}); unset "
            "it or see `ilora doctor`"
        )
