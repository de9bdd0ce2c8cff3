"""Libraries on their best behaviour: what they tell developers is not for users of a command."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

from ilora.errors import InputError


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside the block transformers and its kin show neither warnings nor loading bars.

    Errors still come through, and so do the progress bars of this package.

    Raises:
        InputError: ``ILORA_BACKEND`` names a backend that does not exist or run here.
    """
    # The tokenizer's threads and a data loader's processes do not mix; it would say so each time.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    _check_backend()
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights, which is short
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", module=r"torch|transformers|peft|accelerate")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_backend() -> None:
    requested = os.environ.get("ILORA_BACKEND")
    if not requested:
        return
    try:
        from ilora_kernels import backends
    except ValueError as error:  # it is read when the package is imported
        raise InputError(str(error)) from None
    if reason := backends()[requested]:
        raise InputError(
            f"ILORA_BACKEND is {requested}, which cannot be used here ({reason.rstrip('.')}); unset "
            "it or see `ilora doctor`"
        )
