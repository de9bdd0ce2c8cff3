"""What a training run shows while it runs, a bar on standard error, and the time it takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

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


class TrainingClock(TrainerCallback, ExportableState):
    """The seconds that all steps of a run took, with those before the checkpoint it goes on from."""

    def __init__(self, checkpoint: Path | None) -> None:
        self._before = 0.0
        if checkpoint is not None:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            self._before = state["stateful_callbacks"][type(self).__name__]["seconds"]
        self._started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._started

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint."""
        return {"seconds": self.seconds()}
