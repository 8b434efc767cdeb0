"""What a set of annotated scans has to say of itself, and the file matching that several share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import nibabel as nib

from seg_backbone.errors import ConfigError, InputError, ScanError

SUFFIXES = (".nii.gz", ".nii")
File = Path | Callable[[Path], object]  # a NIfTI file as it is, or a function that writes one to the path given


@dataclass(frozen=True)
class ScanCase:
    """One scan. channels: its images; mask: None where nobody drew; annotated: the classes that were drawn or looked
    for in this scan, canonical names; targets: a second label map (ids in ScanSet.targets); patient: where one has
    several scans; overlaps: "upper over lower" -> ml that a class of the mask lost to another; notes: what to tell."""

    case: str
    channels: tuple[File, ...]
    mask: File | None = None
    annotated: tuple[str, ...] = ()
    modality: str = "CT"
    targets: File | None = None
    patient: str = ""
    overlaps: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScanSet:
    """A folder as read. labels: canonical class name -> id in the masks. cases: or why one cannot be read. channels:
    names of a case's images. notes: what to tell of the whole."""

    labels: Mapping[str, int]
    cases: Iterable[ScanCase | InputError]
    channels: tuple[str, ...] = ("CT",)
    region: str = ""
    targets: Mapping[str, int] | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ScanSource:
    """A set of annotated scans. read: a folder -> what is in it; files are opened only when a case is written. Raises
    ConfigError where the folder is not of this set. named: classes come from names that people chose, and `read` takes
    a second argument, a file of such names or None."""

    name: str
    read: Callable[..., ScanSet]
    named: bool = False


def paired(
    folder: Path,
    labels: Mapping[str, int],
    modality: Callable[[str], str] = lambda case: "CT",
    channels: tuple[str, ...] = ("CT",),
    region: str = "",
) -> ScanSet:
    """The scans below `folder`, each with the mask of its name (see `find_pairs`); every mask annotates all labels."""
    scans, masks, notes = find_pairs(folder)
    cases = [
        ScanCase(case, (scan,), masks.get(case), tuple(labels) if case in masks else (), modality(case))
        for case, scan in scans.items()
    ]
    return ScanSet(labels, cases, channels, region, notes=notes)


def find_pairs(folder: Path) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Case -> scan, case -> mask, and notes on masks without a scan. Raises ConfigError: no scans, or two of one case.

    A NIfTI file is a mask where the folder that it lies in, or the nearest one above that tells, is called label..., a
    scan elsewhere; CASE_0000, imgCASE and labelCASE are CASE. Of two masks of one case the deeper one counts (a folder
    of corrections inside the masks').
    """
    scans: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    files = [path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.name[0] != "."]
    for path in sorted(files, key=lambda path: (len(path.parts), path)):
        case = case_of(path)
        above = [part.lower() for part in reversed(path.relative_to(folder).parts[:-1])]
        if next((part for part in above if part.startswith(("label", "image", "img"))), "").startswith("label"):
            masks[case] = path
        elif case in scans:
            raise ConfigError(path, "one scan a case", f"{scans[case]} too", "name one of the two folders")
        else:
            scans[case] = path
    if not scans:
        raise ConfigError(folder, "NIfTI scans, and masks in a folder called label...", "none", "check the path")
    alone = sorted(set(masks) - set(scans))
    return dict(sorted(scans.items())), masks, [f"left out: {masks[case]}: a mask without a scan" for case in alone]


def case_of(path: Path) -> str:
    """ "img0007.nii.gz", "label0007.nii.gz" -> "0007"; "x_0000.nii.gz" -> "x"."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    name = path.name[: len(path.name) - len(suffix)].removesuffix("_0000")
    for prefix in ("img", "label"):
        if name.startswith(prefix) and name[len(prefix) :].isdigit():
            return name[len(prefix) :]
    return name


def folders_with(folder: Path, pattern: str, what: str) -> list[Path]:
    """The folders that hold `pattern`, one a case, in name order. Raises ConfigError: none, or two of one name."""
    found = sorted({path.parent for path in folder.rglob(pattern)})
    if not found:
        raise ConfigError(folder, f"{what} with {pattern}", "none", "check the path and the download")
    names = [path.name for path in found]
    if twice := [path for path in found if names.count(path.name) > 1]:
        raise ConfigError(twice[1], "one folder a case", f"{twice[0]} too", "name one of the two folders above")
    return found


def load_image(path: Path) -> nib.Nifti1Pair:
    """A NIfTI file, its voxels unread. Raises ScanError."""
    try:
        image = nib.load(path)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise ScanError(path, "a NIfTI file", str(error).splitlines()[0], "copy the file again") from None
    if not isinstance(image, nib.Nifti1Pair):
        raise ScanError(path, "a NIfTI file", type(image).__name__, "convert it to NIfTI")
    return image


def paired_source(name: str, labels: Mapping[str, int], region: str) -> ScanSource:
    """A source of CT scans whose masks annotate every label, found by `paired`."""
    return ScanSource(name, partial(paired, labels=labels, region=region))
