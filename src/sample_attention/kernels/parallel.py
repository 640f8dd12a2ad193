"""Tasks side by side on a CPU: one worker thread per core, each running torch single-threaded.

The operators of one task are too small to be worth splitting over cores: the cores would wait for
each other after every one, spinning, and where another program has one of them, for as long as it
is given. Torch releases the interpreter lock while it computes.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

Task = Callable[[], None]


def run_all(tasks: Iterable[Task], device: torch.device) -> None:
    """Run independent tasks to the end; side by side on a CPU, in order elsewhere.

    A worker that is free takes the next task, which is not made before. Workers take over the
    caller's grad and inference modes. The first error is raised, and no task begins after it.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        for task in tasks:
            task()
        return
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    source, turn, failed = iter(tasks), threading.Lock(), threading.Event()

    def take() -> Task | None:
        with turn:
            return None if failed.is_set() else next(source, None)

    def work() -> None:
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                while (task := take()) is not None:
                    task()
        except BaseException:
            failed.set()
            raise

    pool = _workers(threads, os.getpid())
    done = [pool.submit(work) for _ in range(threads)]
    try:
        wait(done)
    finally:
        failed.set()  # when the caller is interrupted
    for worker in done:
        worker.result()


@functools.lru_cache(maxsize=4)
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """The pool of this process: a fork has the parent's pool without its threads."""
    del process
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread takes over the process's number once; let that be past
        torch.set_num_threads(1)  # of this worker; and of threads to come, so see below
        ready.wait()

    pool = ThreadPoolExecutor(threads, "sample-attention", initializer=start)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)
    return pool
