"""Training in processes of their own: to be killed, or to train together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import ilora.model_folder
from ilora.config import RunSettings
from ilora.training import train


def start(target: Any, *arguments: Any) -> BaseProcess:
    """Run a function of this module in a fresh process.

    The processes are forked from a server that has imported everything and computed nothing.
    """
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def train_and_die_while_saving(settings: RunSettings, out: Path, saves: int) -> None:
    """Train until the model is to be saved for the ``saves``-th time; die half through that."""
    torch.set_num_threads(1)
    save_file, calls = ilora.model_folder.save_file, 0

    def save_or_die(state: dict[str, torch.Tensor], file: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == saves:
            file.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save_file(state, file)

    ilora.model_folder.save_file = save_or_die
    train(settings, out, device="cpu")


def train_together(settings: RunSettings, out: Path, processes: int) -> list[int | None]:
    """Train in several processes, as ``torchrun`` starts them; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    runs = [start(_train_as, settings, out, rank, processes, port) for rank in range(processes)]
    for run in runs:
        run.join(120)
    return [run.exitcode for run in runs]


def _train_as(settings: RunSettings, out: Path, rank: int, processes: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(settings, out, device="cpu")
    torch.distributed.destroy_process_group()
