"""Public data sets, one file each: question sets to the contract's rows, annotated scans to nnU-Net raw folders.

Every file's docstring tells what it reads, the licence, what to cite and one example (written for this project).
`FORMATS` names them; a format is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from seg_backbone.errors import ConfigError

if TYPE_CHECKING:
    from vlm.data.sources.question_source import QuestionSource
    from vlm.data.sources.scan_source import ScanSource

FORMATS = {
    "table": "table:SOURCE",
    "m3d-vqa": "m3d_vqa:SOURCE",
    "3d-rad": "rad_3d:SOURCE",
    "deeptumorvqa": "deeptumorvqa:SOURCE",
    "radfm": "radfm:SOURCE",
    "ct-rate-vqa": "ct_rate_vqa:SOURCE",
    "flare-mllm": "flare_mllm:SOURCE",
    "msd": "msd:SOURCE",
    "kits": "kits:KITS23",
    "kits19": "kits:KITS19",
    "amos": "amos:SOURCE",
    "btcv": "btcv:SOURCE",
    "flare22": "flare:FLARE22",
    "flare23": "flare:FLARE23",
    "flare24": "flare:FLARE24",
    "flare25": "flare:FLARE25",
    "totalsegmentator": "totalsegmentator:SOURCE",
    "openkbp": "openkbp:SOURCE",
    "rtstruct": "rtstruct:SOURCE",
    "dicom-seg": "dicom_seg:SOURCE",
}


def load_source(name: str) -> QuestionSource | ScanSource:
    """The source of a format. Raises ConfigError for an unknown name."""
    if name not in FORMATS:
        raise ConfigError("FORMAT", f"one of {', '.join(FORMATS)}", repr(name), "see vlm data import --list")
    module, attribute = FORMATS[name].split(":")
    source: QuestionSource | ScanSource = getattr(import_module(f"{__name__}.{module}"), attribute)
    return source


def describe(name: str) -> tuple[str, str]:
    """What a format writes ("questions" or "scans"), and the first line of its docstring."""
    from vlm.data.sources.question_source import QuestionSource

    module = import_module(f"{__name__}.{FORMATS[name].split(':')[0]}")
    kind = "questions" if isinstance(load_source(name), QuestionSource) else "scans"
    return kind, (module.__doc__ or "").splitlines()[0]
