"""``--set key=value``: any key of a configuration from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ilora.errors import InputError


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """``["training.max_steps=10", "name=x"]`` -> ``{"training.max_steps": 10, "name": "x"}``.

    Values are YAML: numbers, true and false, lists in brackets, text.

    Raises:
        InputError: no ``=``, no key, a value that is no YAML, or ``null``, which would change
            nothing.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"set: {text!r} is not KEY=VALUE; write for example dropout=0.2")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"set: {value!r} for {key} is not sound YAML; quote it") from None
        if parsed is None:
            raise InputError(f"set: {key} has no value; leave it out to have its default")
        values[key] = parsed
    return values
