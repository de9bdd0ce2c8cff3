"""Tasks side by side: worker processes, several to a GPU, that each take the next task when free.

A language model of some ten million parameters leaves most of a GPU idle: it waits for Python. So
several runs share one.

A worker keeps its process from task to task, because starting Python, torch and CUDA takes as long
as a short evaluation. One whose task fails with anything but an `InputError` ends, with its
traceback in its log; another takes its place, and the other tasks go on.
"""

from __future__ import annotations

import heapq
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ilora.errors import InputError

FAILED = "failed"  # the key of a result that says why there is none
_spawn = multiprocessing.get_context("spawn")  # a forked child could not use CUDA


@dataclass(frozen=True, order=True)
class Task:
    """Something to do in a process of its own.

    Attributes:
        priority: the lowest goes first.
        name: unique.
        call, arguments: what to call; importable, and its result a dictionary.
        weight: how much of a GPU it takes, compared with others; new tasks go where there is least.
    """

    priority: int
    name: str
    call: Callable[..., dict[str, Any]] = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    weight: int = field(default=1, compare=False)


class Worker:
    """One process, bound to a GPU (None: to none in particular)."""

    def __init__(self, gpu: str | None, threads: int, log: Path) -> None:
        self.gpu = gpu
        self.task: Task | None = None
        self.started = 0.0
        self.connection, theirs = _spawn.Pipe()
        own = {"OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            own["CUDA_VISIBLE_DEVICES"] = gpu
        self._process = _spawn.Process(
            target=_serve, args=(theirs, log, multiprocessing.get_start_method())
        )
        with _environment(own):
            self._process.start()
        theirs.close()

    def begin(self, task: Task) -> None:
        """Hand a task over; a process that has ended meanwhile gives no result."""
        self.task, self.started = task, time.monotonic()
        with suppress(BrokenPipeError):
            self.connection.send((task.call, task.arguments))

    def result(self) -> dict[str, Any] | None:
        """What the task gave; None if the process ended over it."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):  # the latter if it never read the task
            self._process.join()
            return None

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def work(
    ready: Callable[[Mapping[str, dict[str, Any]]], Sequence[Task]],
    *,
    gpus: Sequence[str | None],
    jobs: int,
    logs: Path,
    threads: int = 2,
    tell: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Do tasks until none is left; what can be done next may depend on what came out.

    Args:
        ready: results by task name -> the tasks that can start, finished and running ones included; one
            of two of the same name is done.
        gpus: ids as CUDA_VISIBLE_DEVICES takes them, or ``[None]``.
        jobs: workers for each of them.
        logs: a folder for what the workers print.
        threads: of each worker on the CPU.
        tell: gets a line for each task that ends.

    Returns:
        Task name -> result; of a task that failed ``{"failed": why}``.
    """
    logs.mkdir(parents=True, exist_ok=True)
    places = [(gpu, logs / f"worker-{n}.log") for n, gpu in enumerate([*gpus] * jobs)]
    workers = [Worker(gpu, threads, log) for gpu, log in places]
    results: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    try:
        with _ended_by_sigterm():
            while True:
                _hand_out(ready(results), results, workers)
                busy = {worker.connection: n for n, worker in enumerate(workers) if worker.task}
                if not busy:
                    return results
                for connection in wait(list(busy)):
                    n = busy[connection]  # type: ignore[index]
                    worker, task = workers[n], workers[n].task
                    assert task is not None
                    result = worker.result()
                    if result is None:
                        worker.stop()
                        workers[n] = Worker(places[n][0], threads, places[n][1])
                        result = {FAILED: f"its process ended; see {places[n][1]}"}
                    worker.task = None
                    results[task.name] = result
                    now = time.monotonic()
                    tell(
                        f"[{now - began:6.1f} s] {task.name} took {now - worker.started:.1f} s"
                        + ("" if worker.gpu is None else f" on GPU {worker.gpu}")
                        + (f" and FAILED: {result[FAILED]}" if FAILED in result else "")
                    )
    finally:
        for worker in workers:
            worker.stop()


def _hand_out(
    tasks: Sequence[Task], results: Mapping[str, dict[str, Any]], workers: Sequence[Worker]
) -> None:
    """Give every free worker the next task, those on the least loaded GPU first."""
    running = {worker.task.name for worker in workers if worker.task}
    begun = running | results.keys()
    waiting = list({task.name: task for task in tasks if task.name not in begun}.values())
    heapq.heapify(waiting)
    while waiting and (free := [worker for worker in workers if worker.task is None]):
        load: dict[str | None, int] = {worker.gpu: 0 for worker in workers}
        for worker in workers:
            load[worker.gpu] += worker.task.weight if worker.task else 0
        min(free, key=lambda worker: load[worker.gpu]).begin(heapq.heappop(waiting))


def _serve(connection: Connection, log: Path, start_method: str) -> None:
    """The life of a worker: it ends with the process that started it, whatever it is doing."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Else its data loaders, too, would spawn processes, which costs each training some seconds.
    multiprocessing.set_start_method(start_method, force=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from ilora.cli.libraries import quiet_libraries

    with quiet_libraries():
        while True:
            try:
                call, arguments = connection.recv()
            except EOFError:
                return
            try:
                result = call(*arguments)
            except InputError as error:
                result = {FAILED: str(error)}
            connection.send(result)


def _end_with_parent() -> None:
    """Wait for the parent's end, however it comes, and end at once.

    A parent that is killed tells nobody. A worker that went on would write into the same folders as
    that of the study which takes its place.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _environment(own: Mapping[str, str]) -> Iterator[None]:
    """A spawned process reads its environment when it starts."""
    before = dict(os.environ)
    os.environ.update(own)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let a termination run the clean-up, which ends the workers."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
