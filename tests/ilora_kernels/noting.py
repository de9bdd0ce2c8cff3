"""What a function of a module answers, call by call."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def noted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[Any]:
    """Let a module's function do what it does, and return the list that its answers go to."""
    answers: list[Any] = []
    original = getattr(module, name)

    def noting(*arguments: Any) -> Any:
        answers.append(original(*arguments))
        return answers[-1]

    monkeypatch.setattr(module, name, noting)
    return answers
