"""Units of work over several processes, started clean, that stop with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from idgen.errors import IdgenError

from .settings import Unit

# Renders and saves one unit, yielding the count of samples after each batch. Made once in each worker.
Work = Callable[[Unit], Iterator[int]]


def run_units(
    make_work: Callable[..., Work], arguments: tuple[Any, ...], units: Sequence[Unit], workers: int
) -> Iterator[int]:
    """Counts of finished samples, as they come; the units are done in any order.

    make_work(*arguments) is called in each worker (both must be picklable). With one worker all happens in this process.
    Raises IdgenError when a worker fails or dies.
    """
    workers = min(workers, len(units))
    if workers <= 1:
        with one_thread():
            work = make_work(*arguments)
            for unit in units:
                yield from work(unit)
        return
    # Spawned, not forked: a fork of a process that has used torch's or numba's threads may hang.
    context = multiprocessing.get_context("spawn")
    left = list(reversed(units))
    pipes: dict[Connection, Any] = {}
    try:
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, make_work, arguments), daemon=True)
            with _interrupts_held():
                process.start()
            there.close()  # so that the end of the worker is the end of the pipe
            pipes[here] = process
        while pipes:
            for pipe in wait(list(pipes)):
                yield from _answer(pipe, pipes, left)  # type: ignore[arg-type]
    finally:
        for process in pipes.values():
            process.terminate()
        for process in pipes.values():
            process.join()


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: several processes of one thread are faster than one of several, and give the same bytes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back: a process started here is born deaf to it, even in its first seconds of imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # now: its own start would lift what is held back here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(pipe: Connection, pipes: dict[Connection, Any], left: list[Unit]) -> Iterator[int]:
    """Take one message from a worker: None when it wants a unit, a count of samples, or what went wrong."""
    try:
        message = pipe.recv()
        if message is None:
            pipe.send(left.pop() if left else None)
            return
    except (EOFError, ConnectionError):
        process = pipes.pop(pipe)
        process.join()
        if process.exitcode:
            raise IdgenError(
                f"a worker died (exit status {process.exitcode}; out of memory?): "
                "run the same command again to go on where it stopped, with fewer --workers"
            ) from None
        return
    if isinstance(message, BaseException):
        raise message
    yield message


def _serve(pipe: Connection, make_work: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    """The life of a worker: ask for a unit, do it, until there is none left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows, which can not hold it back at the start
    try:
        with one_thread():
            work = make_work(*arguments)
            pipe.send(None)
            while (unit := pipe.recv()) is not None:
                for count in work(unit):
                    pipe.send(count)
                pipe.send(None)
    except (EOFError, ConnectionError):
        os._exit(1)  # the one that started us is gone: nobody wants the rest
    except (IdgenError, OSError) as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(f"in a worker of idgen synth: {traceback.format_exc()}"))
