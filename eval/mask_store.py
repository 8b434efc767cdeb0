"""Scores of single cases on disk, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval.lesionwise import Lesions
from eval.mask_files import Case
from eval.mask_scores import CaseScores, MaskScore, Rules
from seg_backbone.io.atomic import replacing


@dataclass(frozen=True)
class Store:
    """One JSON a case in `folder`. A file counts only for the rules, files and classes that it was made with."""

    folder: Path
    rules: Rules

    def read(self, case: Case) -> CaseScores | None:
        """The scores of a case; None where there are none, or of other rules or files."""
        try:
            stored = json.loads(self._path(case).read_text(encoding="utf-8"))
            if stored["key"] != self._key(case):
                return None
            scores = [MaskScore(**{**score, "lesions": _lesions(score["lesions"])}) for score in stored["scores"]]
            return CaseScores(scores, [(what, where) for what, where in stored["remarks"]])
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of ours: the case is scored again
            return None

    def write(self, case: Case, result: CaseScores) -> None:
        """Keep the scores of a case."""
        text = json.dumps({"key": self._key(case), **asdict(result)}, default=np.ndarray.tolist)
        with replacing(self._path(case)) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def clear(self, cases: Sequence[Case]) -> None:
        """Remove what was kept."""
        for case in cases:
            self._path(case).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, case: Case) -> Path:
        return self.folder / f"{case.name}.json"

    def _key(self, case: Case) -> str:
        files = [path.stat() for path in (case.reference, case.prediction) if path is not None]
        made_of = (self.rules, case.annotated and sorted(case.annotated), [(f.st_size, f.st_mtime_ns) for f in files])
        return hashlib.sha256(repr((str(case.reference), str(case.prediction), *made_of)).encode()).hexdigest()


def _lesions(stored: dict | None) -> Lesions | None:
    if stored is None:
        return None
    reference, predicted = (np.array(stored[side], dtype=np.int64) for side in ("reference", "predicted"))
    shared = np.array(stored["shared"], dtype=np.int64).reshape(len(predicted), len(reference))
    return Lesions(**{**stored, "reference": reference, "predicted": predicted, "shared": shared})
