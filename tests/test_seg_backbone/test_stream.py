"""Streaming scans: everything overlaps, in order, and one failure does not stop the rest."""

import threading
import time
import weakref
from functools import partial

import pytest

from seg_backbone.errors import ScanError
from seg_backbone.stream import stream


def test_nothing_gives_nothing():
    assert list(stream([], abs, lambda: abs, lambda item, result: result)) == []


def test_reading_working_and_writing_overlap():
    log = []

    def part(name, number):
        log.append((name, number, threading.get_ident()))
        time.sleep(0.05)
        return number

    def run(overlap):
        log.clear()
        read, work = partial(part, "read"), partial(part, "work")
        written = stream(range(6), read, lambda: work, lambda number, _: part("write", number), overlap)
        assert [number for _, number in written] == [*range(6)]

    run(True)
    order = [(name, number) for name, number, _ in log]
    assert order.index(("read", 1)) < order.index(("write", 0)), "the next scan is read while the first is worked on"
    assert {thread for name, _, thread in log if name == "work"} == {threading.get_ident()}
    run(False)
    assert [name for name, _, _ in log] == ["read", "work", "write"] * 6


def test_the_first_scan_is_read_while_the_model_loads():
    reading = threading.Event()

    def read(number):
        reading.set()
        return number

    def prepare():
        assert reading.wait(5)
        return abs

    assert list(stream([1], read, prepare, lambda item, result: result)) == [(1, 1)]


@pytest.mark.parametrize("overlap", [True, False])
def test_failures_are_told_in_their_place(overlap):
    def fail_at(where):
        def part(number, *_):
            if number == where:
                raise RuntimeError("out of memory") if where == 2 else ScanError(str(number), "a scan", "none", "look")
            return number

        return part

    found = list(stream([1, 2, 3, 4], fail_at(1), lambda: fail_at(2), fail_at(3), overlap))
    assert [item for item, _ in found] == [1, 2, 3, 4]
    assert [type(result) for _, result in found] == [ScanError, RuntimeError, ScanError, int]
    assert all(result.__traceback__ is None for _, result in found[:3])


def test_a_broken_promise_and_an_unusable_model_end_everything():
    def broken(*_):
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        list(stream([1, 2], abs, lambda: broken, lambda item, result: result))
    with pytest.raises(AssertionError, match="ours"):
        list(stream([1, 2], abs, broken, lambda item, result: result))


class Scan:
    pass


def test_few_scans_are_held():
    alive = weakref.WeakSet()
    most = {True: 0, False: 0}
    for overlap in most:

        def read(number):
            scan = Scan()
            alive.add(scan)
            return scan

        def work(scan, overlap=overlap):
            most[overlap] = max(most[overlap], len(alive))
            return scan

        for _ in stream(range(8), read, lambda work=work: work, lambda item, scan: None, overlap):
            pass
    assert most[False] == 1 and most[True] <= 3
