"""Many scans through one model: the next is read and the last is written while the network works on this one.

Reading and writing are mostly decompression and compression, which leave Python's lock alone, so one thread for each
keeps the network busy. One scan that fails does not stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

# what one scan may do wrong: input errors are ValueErrors, torch's (out of memory among them) RuntimeErrors
FAILURES = (OSError, MemoryError, RuntimeError, ValueError)
Item = TypeVar("Item")
Scan = TypeVar("Scan")
Result = TypeVar("Result")
Written = TypeVar("Written")


def stream(
    items: Sequence[Item],
    read: Callable[[Item], Scan],
    prepare: Callable[[], Callable[[Scan], Result]],
    write: Callable[[Item, Result], Written],
    overlap: bool = True,
) -> Iterator[tuple[Item, Written | Exception]]:
    """read, work, write for every item; yields (item, what write returned, or the failure) in the order given.

    prepare: called once, while the first item is read; returns `work`, which runs in the caller's thread. What it
    raises ends everything. overlap: up to three scans are held at once (read, worked on, written); without it one.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        ahead = reader.submit(read, items[0]) if overlap and items else None
        work = prepare()
        behind: tuple[Item, Future[Written]] | None = None
        for number, item in enumerate(items):
            reading = ahead or reader.submit(read, item)
            wait([reading])
            ahead = reader.submit(read, items[number + 1]) if overlap and number + 1 < len(items) else None
            try:
                writing = writer.submit(write, item, work(reading.result()))
            except FAILURES as error:
                writing = Future()
                writing.set_exception(error)
            del reading
            if behind:
                yield behind[0], _outcome(behind[1])
            behind = item, writing
            if not overlap:
                yield item, _outcome(writing)
                behind = None
        if behind:
            yield behind[0], _outcome(behind[1])


def _outcome(writing: Future[Any]) -> Any:
    """What was written, or the failure without its traceback, whose frames would keep the scan in memory."""
    try:
        return writing.result()
    except FAILURES as error:
        return error.with_traceback(None)
