"""Work in several processes, of which any may die: what it had in hand is then tried alone.

Only as many items are handed out as there are processes, so that when one dies, few are suspected.
Each suspect is repeated in a process of its own; one that ends that too is the cause, and is given
up. Everything else goes on. The processes leave Ctrl-C to the one that started them, finish what
they have in hand, and end with it even if it is killed.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from iedn.errors import IednError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Generator[tuple[int, Result | None]]:
    """Results as they get ready, each with its item's index; None if the item ends its process.

    Args:
        work: a function that can be pickled; what it raises is raised here.
        items: can be pickled too.
        workers: processes; each starts afresh and imports what it needs, which takes seconds.

    Raises:
        IednError: processes cannot be started here.
    """
    waiting = deque(range(len(items)))
    while waiting:
        in_hand: dict[Future[Result], int] = {}
        try:
            with _pool(workers) as pool:
                while waiting or in_hand:
                    while waiting and len(in_hand) < workers:
                        future = pool.submit(work, items[waiting[0]])
                        in_hand[future] = waiting.popleft()
                    for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield in_hand.pop(future), result
        except BrokenProcessPool:
            for index in in_hand.values():
                yield index, _alone(work, items[index])


def _alone(work: Callable[[Item], Result], item: Item) -> Result | None:
    with _pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise IednError("no process can be started; set workers = 1 in site.toml") from error
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return None


def _pool(workers: int) -> ProcessPoolExecutor:
    # A fresh interpreter: a forked one would inherit locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
