"""Encoders by name. A new one is a file with a `SequenceEncoder` and a line here."""

from __future__ import annotations

import inspect
from typing import Any

from ilora.encoders.base import SequenceEncoder
from ilora.encoders.caser import Caser
from ilora.encoders.gru4rec import GRU4Rec
from ilora.encoders.llara import PublishedCaser, PublishedGRU, PublishedSASRec
from ilora.encoders.sasrec import SASRec
from ilora.errors import InputError

ENCODERS: dict[str, type[SequenceEncoder]] = {
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
    "caser": Caser,
}

# Those of the reference code, for its weights (`ilora import reference`).
PUBLISHED: dict[str, type[SequenceEncoder]] = {
    "llara-sasrec": PublishedSASRec,
    "llara-gru": PublishedGRU,
    "llara-caser": PublishedCaser,
}


def build_encoder(
    name: str, num_items: int, hidden_size: int = 64, window: int = 10, **options: Any
) -> SequenceEncoder:
    """A freshly initialised encoder; its weights come from torch's global generator.

    Args:
        name: a key of `ENCODERS`, or of `PUBLISHED`.
        num_items: size of the catalogue.
        hidden_size: width of item and history vectors.
        window: the longest history.
        options: the encoder's own, such as ``num_blocks``, ``num_heads``, ``dropout``.

    Raises:
        InputError: an unknown name or option, or a value that the encoder refuses.
    """
    known_encoders = ENCODERS | PUBLISHED
    if name not in known_encoders:
        raise InputError(f"encoder is {name!r}; it must be one of {', '.join(ENCODERS)}")
    encoder = known_encoders[name]
    parameters = inspect.signature(encoder).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            raise InputError(
                f"{option!r} is not an option of the encoder {name}; it has {', '.join(known)}"
            )
        kind = type(known[option])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{option} is {value!r}; it must be of the kind of {known[option]!r}")
    return encoder(num_items, hidden_size, window, **options)
