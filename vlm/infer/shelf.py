"""Scans on a shelf: those that may be asked about, opened when they are, and the conversations about them.

One engine answers everybody, one thing at a time; the scans opened last stay in memory.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from seg_backbone.errors import InputError, ScanError
from seg_backbone.io import SUFFIXES, case_name, find_scans, write_mask
from seg_backbone.io.formats import split_series
from seg_backbone.preview import count_slices, slice_png
from vlm.infer.conversation import Conversation, Turn
from vlm.infer.engine import Engine, Scan
from vlm.schema import Answer, Question

OPEN_SCANS = 3  # in memory at once; the least recently used is closed, and opened again when it is asked about
UPLOADS = (".nii.gz", ".nii", ".nrrd", ".mha", ".zip")  # formats of one file
CONVERSATIONS = 1000  # the least recently used is forgotten


class UnknownError(InputError):
    """A scan or conversation that is not there."""


class OutsideError(ScanError):
    """A path that is not served."""


@dataclass(frozen=True)
class Entry:
    """A scan on the shelf. uploaded: its file is the shelf's own."""

    id: str
    path: Path
    uploaded: bool = False

    def to_json(self) -> dict[str, Any]:
        """{"id", "name", "uploaded"}."""
        return {"id": self.id, "name": case_name(self.path), "uploaded": self.uploaded}


class Shelf:
    """Scans by id, and conversations by id. Safe to use from several threads.

    served: scan or folder of scans -> the scans in it, see scans_of; whatever is in such a folder may be opened.
    anywhere: any other path too. folder: where uploads and masks are kept.
    """

    def __init__(
        self,
        engine: Engine,
        served: dict[Path, list[Path]],
        folder: Path,
        anywhere: bool = False,
        fast: bool = False,
    ) -> None:
        self.engine, self.folder, self.anywhere, self.fast = engine, folder, anywhere, fast
        self.roots = [Path(os.path.abspath(root)) for root in served]
        paths = [Path(os.path.abspath(path)) for scans in served.values() for path in scans]
        self.entries = {_id(path): Entry(_id(path), path) for path in paths}
        self.opened: OrderedDict[str, Scan] = OrderedDict()
        self.conversations: OrderedDict[str, tuple[str, list[Turn]]] = OrderedDict()
        self.lock = threading.RLock()  # of the engine and the three above

    def add(self, path: str) -> Entry:
        """Put a scan on the shelf. Relative paths start at the folders served.

        Raises OutsideError for a path that is neither served nor inside a folder that is, ScanError for no scan.
        """
        places = [root / path for root in self.roots if root.is_dir()] or [Path(path)]
        absolute = [Path(os.path.abspath(place)) for place in places]
        allowed = [place for place in absolute if self.anywhere or self._served(place)]
        if not allowed:
            todo = "start `vlm serve` with its folder, or with --any-path"
            raise OutsideError(path, "a scan among those served", "a path outside them", todo)
        there = [place for place in allowed if os.path.exists(split_series(place)[0])]
        chosen = (there or allowed)[0]
        return self._open_new(Entry(_id(chosen), chosen))

    def upload(self, name: str, content: BinaryIO) -> Entry:
        """Keep an uploaded file until the shelf is gone or it is removed. Raises ScanError for no scan."""
        name = Path(name.replace("\\", "/")).name
        if not name.lower().endswith(UPLOADS):
            raise ScanError(name or "upload", f"one file ({', '.join(UPLOADS)})", "another name", "convert or zip it")
        id = uuid.uuid4().hex[:12]
        path = self.folder / id / name
        path.parent.mkdir(parents=True)
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(content, file)
            _require_no_reference(path)
            return self._open_new(Entry(id, path, uploaded=True))
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise

    def remove(self, id: str) -> None:
        """Take a scan off the shelf, with its conversations and, of an upload, its file."""
        with self.lock:
            self.entry(id)
            del self.entries[id]
            self.opened.pop(id, None)
            for key in [key for key, (scan, _) in self.conversations.items() if scan == id]:
                del self.conversations[key]
        shutil.rmtree(self.folder / id, ignore_errors=True)

    def entry(self, id: str) -> Entry:
        """The scan of an id. Raises UnknownError."""
        if id not in self.entries:
            raise UnknownError(f"scan {id}", "the id of a scan", "none with it", "list them")
        return self.entries[id]

    def scan(self, id: str) -> Scan:
        """The scan, opened; the least recently used one is closed for it. Raises UnknownError, ScanError."""
        with self.lock:
            entry = self.entry(id)
            if id not in self.opened:
                while len(self.opened) >= OPEN_SCANS:
                    self.opened.popitem(last=False)
                self.opened[id] = self.engine.open(entry.path, fast=self.fast)
            self.opened.move_to_end(id)
            return self.opened[id]

    def describe(self, id: str) -> dict[str, Any]:
        """What a scan is and what was found in it, for JSON."""
        entry, scan = self.entry(id), self.scan(id)
        grid = scan.volume.grid
        return {
            **entry.to_json(),
            "modality": scan.volume.modality,
            "modality_from": scan.volume.modality_from,
            "shape": list(grid.shape),
            "spacing_mm": [round(float(step), 4) for step in grid.spacing_mm],
            "orientation": grid.orientation,
            "slices": count_slices(grid),
            "labels": scan.mask.labels,
            "not_trained_for": list(scan.scene.untrained),
            "instances": [instance.to_json() for instance in scan.instances],
        }

    def ask(self, id: str, question: dict[str, Any]) -> Answer:
        """One question with the keys of the schema (question, type, options, unit), by itself. Raises QuestionError."""
        with self.lock:
            return self.engine.ask(self.scan(id), self._question(id, question))

    def slice(self, id: str, plane: str, index: int | None, overlay: bool) -> bytes:
        """A slice as PNG, see slice_png; without an index the one of the largest instance, or the middle one."""
        scan = self.scan(id)
        if index is None:
            middle = count_slices(scan.volume.grid).get(plane, 0) // 2
            found = max(scan.instances, key=lambda one: one.volume_ml, default=None)
            index = int(found.slice["index"]) if found and plane == "axial" else middle
        return slice_png(scan.volume, scan.mask, plane, index, overlay)

    def mask(self, id: str) -> Path:
        """The mask as CASE.nii.gz in the shelf's folder."""
        with self.lock:
            entry, scan = self.entry(id), self.scan(id)
            path = self.folder / id / "mask" / f"{case_name(entry.path)}.nii.gz"
            return path if path.is_file() else write_mask(scan.mask, path)

    def talk(self, id: str) -> str:
        """Start a conversation about a scan; returns its id."""
        with self.lock:
            self.entry(id)
            key = uuid.uuid4().hex
            self.conversations[key] = (id, [])
            if len(self.conversations) > CONVERSATIONS:
                self.conversations.popitem(last=False)
            return key

    def turns(self, key: str) -> list[Turn]:
        """What was said in a conversation. Raises UnknownError."""
        return self._conversation(key)[1]

    def say(self, key: str, question: dict[str, Any]) -> Turn:
        """Ask in a conversation: a question or a follow-up. Raises UnknownError, QuestionError."""
        with self.lock:
            id, turns = self._conversation(key)
            conversation = Conversation(self.engine, self.scan(id))
            conversation.turns = turns
            conversation.ask(self._question(id, question).question)
            return turns[-1]

    def forget(self, key: str) -> None:
        """End a conversation. Raises UnknownError."""
        with self.lock:
            self._conversation(key)
            del self.conversations[key]

    def _conversation(self, key: str) -> tuple[str, list[Turn]]:
        with self.lock:
            if key not in self.conversations:
                raise UnknownError("conversation", "the id of one that is open", repr(key), "start a new one")
            self.conversations.move_to_end(key)
            return self.conversations[key]

    def _question(self, id: str, question: dict[str, Any]) -> Question:
        return Question.from_json({**question, "id": "question", "image": str(self.entry(id).path)})

    def _served(self, path: Path) -> bool:
        """Whether the user named this path or a folder above it; what a link in that folder leads to is served too."""
        plain = split_series(path)[0]
        return any(plain == root or (root.is_dir() and plain.is_relative_to(root)) for root in self.roots)

    def _open_new(self, entry: Entry) -> Entry:
        """Put a scan on the shelf and open it; one that cannot be opened is not left there."""
        with self.lock:
            known = entry.id in self.entries
            self.entries.setdefault(entry.id, entry)
            try:
                self.scan(entry.id)
            except BaseException:
                if not known:
                    del self.entries[entry.id]
                raise
            return self.entries[entry.id]


def scans_of(root: Path) -> list[Path]:
    """The scans of a folder, or the one scan named. Raises ScanError where there is none."""
    plain = split_series(root)[0]
    if not os.path.exists(plain):
        raise ScanError(root, "a scan or a folder of scans", "no such file", "check the path")
    if root.is_dir():
        scans = find_scans(root)[0]
        if not scans:
            raise ScanError(root, f"a folder with scans ({', '.join(SUFFIXES)}, DICOM)", "none", "check the path")
        return scans
    return [root]


def _id(path: Path) -> str:
    return sha256(os.fsencode(path)).hexdigest()[:12]


def _require_no_reference(path: Path) -> None:
    """Raises ScanError for a header that names another file for its voxels: an upload must not read the server's."""
    with path.open("rb") as file:
        header = file.read(1 << 16)
    name = path.name.lower()
    if (name.endswith(".nrrd") and re.search(rb"(?im)^\s*data\s*file\s*:", header.partition(b"\n\n")[0])) or (
        name.endswith(".mha") and not re.search(rb"(?im)^\s*ElementDataFile\s*=\s*LOCAL\s*$", header)
    ):
        raise ScanError(path.name, "voxels in the file itself", "a header that names another file", "write one file")
