"""What a training run shows while it runs: one bar on standard error, with the latest losses."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

LOSSES = {"loss": "loss", "eval_loss": "validation"}


class TrainingBar(TrainerCallback):
    """A bar over the optimiser steps. The Trainer's own writes every log line to standard output,
    where only results belong."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[losses]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.start()
            self._bar.add_task("", total=state.max_steps, completed=state.global_step, losses="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for task in self._bar.task_ids:
            self._bar.update(task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._latest |= {LOSSES[key]: value for key, value in (logs or {}).items() if key in LOSSES}
        text = "  ".join(f"{name} {value:.3f}" for name, value in self._latest.items())
        for task in self._bar.task_ids:
            self._bar.update(task, losses=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.stop()
