"""Where the seconds of one scan go, and the end of a run that cannot keep its cap on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from seg_backbone.errors import ConfigError

T = TypeVar("T")


class Clock:
    """Seconds between laps, by name. spent: what the total begins with."""

    def __init__(self, spent: float = 0.0) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._start = self._last - spent

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 3)
        self._last = now

    def alternate(self, items: Iterable[T], making: str, using: str) -> Iterator[T]:
        """The items; the time in which they are made and the time in between are booked apart."""
        for item in items:
            self.lap(making)
            yield item
            self.lap(using)

    def total(self) -> float:
        """Seconds since the clock was made, and what was spent before."""
        return round(time.perf_counter() - self._start, 3)


def with_deadline(
    progress: Callable[[int, int], None] | None, seconds: float, clock: Clock, ahead: float, source: str
) -> Callable[[int, int], None]:
    """progress, and a ConfigError as soon as the windows leave less than `ahead` seconds for what follows them."""

    def check(done: int, total: int) -> None:
        if progress:
            progress(done, total)
        spent = clock.total()
        if spent + ahead > seconds and done < total:
            least = math.ceil(1.2 * (spent / done * total + ahead))
            found = f"{done} of {total} windows after {spent:.1f} s of --max-seconds {seconds:g}"
            raise ConfigError(source, f"at least --max-seconds {least}", found, "raise it, or free the machine")

    return check
