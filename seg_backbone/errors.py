"""The tree of input errors: what a user can get wrong, told in one line.

Every error names the file, what was expected, what was found and what to do. The command line turns an `InputError`
into exit code 2; our own broken promises are `assert`s and are never caught.
"""

from __future__ import annotations

from pathlib import Path


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
