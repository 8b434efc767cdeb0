"""The tree of input errors: what a user can get wrong, told in one line.

Every error names the file, what was expected, what was found and what to do. The command line turns an `InputError`
into exit code 2; our own broken promises are `assert`s and are never caught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class InputError(ValueError):
    """A mistake in what the user gave. `str(error)` is one line fit for a terminal."""

    def __init__(self, source: str | Path, expected: str, found: str, todo: str) -> None:
        self.source, self.expected, self.found, self.todo = str(source), expected, found, todo
        super().__init__(f"{source}: expected {expected}, found {found}; {todo}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """For pickle: a worker process hands its errors to the one that started it."""
        return type(self), (self.source, self.expected, self.found, self.todo)


class ScanError(InputError):
    """A scan that cannot be read as a 3D volume (missing, 2D, not an image, empty, not finite)."""


class GridError(InputError):
    """Two arrays that should share a grid do not."""


class LabelError(InputError):
    """A label file or a label name that does not fit."""


class QuestionError(InputError):
    """A question or a question file that does not fit the schema."""


class CheckpointError(InputError):
    """A model folder that is missing, incomplete or of another kind."""


class ConfigError(InputError):
    """A configuration value that is unknown or impossible."""


class InputErrors(InputError):
    """Several mistakes at once: `errors`, of which the first gives source, expected, found and todo."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        first = errors[0]
        super().__init__(first.source, first.expected, first.found, first.todo)
        self.errors = tuple(errors)

    def __str__(self) -> str:
        """A line an error."""
        return "\n".join(" ".join(str(error).splitlines()) for error in self.errors)

    def __reduce__(self) -> tuple[type[InputErrors], tuple[tuple[InputError, ...]]]:  # type: ignore[override]
        """For pickle."""
        return type(self), (self.errors,)


class Gathered:
    """The mistakes of many items, so that all of them are told and not the first alone. Threads may share it."""

    def __init__(self) -> None:
        self._errors: list[InputError] = []

    def attempt(self, work: Callable[[Item], Result]) -> Callable[[Item], Result | None]:
        """`work`, which returns None where it raised an InputError."""

        def attempted(item: Item) -> Result | None:
            try:
                return work(item)
            except InputError as error:
                self._errors.append(error)
                return None

        return attempted

    def tell(self) -> None:
        """Raise what was gathered, by file: the InputError itself where it is one, else InputErrors."""
        if self._errors:
            errors = sorted(self._errors, key=str)
            raise errors[0] if len(errors) == 1 else InputErrors(errors)
