"""Files that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from seg_backbone.errors import ConfigError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, that takes its place when all went well.

    The parent folder is made. On an error the temporary file is removed and whatever was at `path` stays. Who may read
    the file is as for any new one, also where a writer gave it to its owner alone, as that of safetensors does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """See that files can be written in a folder, or where it will be made, before hours of work. Raises ConfigError."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        found = f"{there}: {error.strerror or error}"
        raise ConfigError(folder, "a folder that can be written", found, "choose another, or make room") from None
