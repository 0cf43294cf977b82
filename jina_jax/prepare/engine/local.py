"""Runs tasks in processes of this machine."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from jina_jax.prepare.engine.task import Task, WorkerLostError, execute
from jina_jax.system.processes import begin_worker
from jina_jax.system.store import Store

_QUEUED_PER_WORKER = 8
"""Tasks handed out ahead, which bounds what a cancelled stage still does."""


class LocalEngine:
    """Processes of this machine, which die with this one."""

    def __init__(self, workers: int):
        """Starts nothing yet.

        Args:
          workers: processes; with 1 the tasks run in this one. Tasks that need an accelerator
            always do, since a device serves one process.
        """
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Sequence[Task], store: Store) -> Iterator[tuple[int, bytes]]:
        """As in Engine."""
        alone = self._workers == 1 or len(tasks) == 1
        here = [i for i, task in enumerate(tasks) if alone or task.needs_accelerator]
        for index in here:
            yield index, execute(tasks[index], store)
        if len(here) < len(tasks):
            yield from self._spread(tasks, store, sorted({*range(len(tasks))} - {*here}))

    def _spread(
        self, tasks: Sequence[Task], store: Store, indices: Sequence[int]
    ) -> Iterator[tuple[int, bytes]]:
        if self._pool is None:
            # Not forked: a fork of a process with threads may hang.
            self._pool = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(),)
            )
        waiting = iter(indices)
        running: dict[Future[bytes], int] = {}
        try:
            while True:
                for index in islice(waiting, _QUEUED_PER_WORKER * self._workers - len(running)):
                    running[self._pool.submit(execute, tasks[index], store)] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    yield index, future.result()
        except BrokenProcessPool as error:
            self.close()
            raise WorkerLostError(
                "a worker process was killed, perhaps for want of memory: run the same command "
                "again (finished tasks are kept), with a lower data.engine.workers if it recurs"
            ) from error
        finally:
            # What is running ends, so that nothing works beside whoever comes next.
            wait([future for future in running if not future.cancel()])

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _start_worker(parent: int) -> None:
    begin_worker(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # The processes are the parallelism.
