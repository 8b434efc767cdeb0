"""Five folds: nnU-Net's where all patients are alike, and a rare class in as many folds as can be where not."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from seg_backbone.cases import CaseFiles, DatasetEntry
from seg_backbone.errors import ConfigError
from seg_backbone.folds import fold_split, folds
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.plan import Plan
from seg_backbone.train import SegmentationConfig
from seg_backbone.train.data import divide
from seg_backbone.volume import Mask, Volume


def case(patient, *annotated, modality="CT", dataset="d", name=None, folder=Path("d")):
    name = name or patient
    image, mask = folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"
    return CaseFiles(dataset, name, patient, modality, image, mask, {}, annotated)


@pytest.mark.parametrize("number", [5, 6, 9, 23, 131])
def test_plain_datasets_are_divided_as_nnunet_divides_them(number):
    """nnU-Net v2: KFold(5, shuffle=True, random_state=12345) of the sorted cases."""
    names = [f"case_{n:03d}" for n in np.random.default_rng(number).permutation(number)]
    reference = KFold(n_splits=5, shuffle=True, random_state=12345).split(sorted(names))
    assert folds([case(name, "liver") for name in names]) == [np.sort(names)[held].tolist() for _, held in reference]


def test_a_rare_class_is_in_every_fold():
    """Of 31 patients 5 annotate the larynx, 10 an esophagus besides the brain stem, 1 nothing else; 6 are MR."""
    rare = [case(f"r{n}", "brainstem", "larynx") for n in range(5)]
    common = [case(f"c{n}", "brainstem", "esophagus") for n in range(10)]
    others = [case(f"m{n}", "brainstem", modality="MR") for n in range(6)] + [
        case(f"p{n}", "brainstem") for n in range(9)
    ]
    every = [*rare, *common, *others, case("x", "mandible")]
    parts = folds(every)
    assert sorted(chain(*parts)) == sorted(one.patient for one in every)
    assert {len(part) for part in parts} <= {6, 7}
    counts = [{kind: sum(p.startswith(kind) for p in part) for kind in "rcm"} for part in parts]
    assert [count["r"] for count in counts] == [1] * 5
    assert [count["c"] for count in counts] == [2] * 5
    assert {count["m"] for count in counts} <= {1, 2}
    assert folds(list(reversed(every))) == parts
    plain = [
        np.sort([one.patient for one in every])[held]
        for _, held in KFold(5, shuffle=True, random_state=12345).split(every)
    ]
    assert min(sum(p.startswith("r") for p in part) for part in plain) == 0  # what it is for


def test_classes_of_whole_scans_are_spread_too(tmp_path):
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"tumour": 1}, "classification_labels": {"grade": {"0": "low", "1": "high"}}})
    )
    lines = [f"p{n:02d},{int(n < 5)}" for n in range(25)]
    (tmp_path / "cls_data.csv").write_text("\n".join(["identifier,grade", *lines]))
    parts = folds([case(f"p{n:02d}", "tumour", folder=tmp_path) for n in range(25)])
    assert [len(part) for part in parts] == [5] * 5
    assert [sum(int(name[1:]) < 5 for name in part) for part in parts] == [1] * 5


def test_patients_stay_whole_and_unlabelled_ones_train():
    cases = [case(p, "tumour", name=f"{p}_{n}") for n, p in enumerate("abcdefga")]
    cases += [replace(case("u", "tumour"), mask=None), case("v")]
    held = [fold_split(cases, fold)["validation"] for fold in range(5)]
    assert sorted(chain(*held)) == list("abcdefg")
    assert {len(part) for part in held} == {1, 2}
    assert fold_split([case("a", "tumour"), case("b", "tumour")], 1)["validation"] in (["a"], ["b"])
    assert fold_split([case("a", "tumour"), case("a", "tumour", name="a2")], 0) == {"validation": []}
    assert folds([]) == [] and fold_split([], 0) == {"validation": []}
    with pytest.raises(ConfigError, match="a fold below 2, as patients have labels, found 2"):
        fold_split([case("a", "tumour"), case("b", "tumour")], 2)


def test_no_patient_is_on_both_sides_of_two_datasets(tmp_path):
    """D1 and D2 share patients; D3 has its own split, which holds one of them back."""
    grid = Grid((4, 4, 4), np.eye(4))
    for name, patients in (("D1", "abcdefgh"), ("D2", "cdefghijk"), ("D3", "ax")):
        for patient in patients:
            scan = Volume(np.zeros(grid.shape, np.int16), grid, "CT")
            write_volume(scan, tmp_path / name / "imagesTr" / f"{patient}_0000.nii.gz")
            write_mask(Mask(np.ones(grid.shape, np.uint8), grid), tmp_path / name / "labelsTr" / f"{patient}.nii.gz")
        (tmp_path / name / "dataset.json").write_text(json.dumps({"labels": {"tumour": 1}}))
    (tmp_path / "D3" / "splits_final.json").write_text(json.dumps([{"train": ["x"], "val": ["a"]}]))
    config = SegmentationConfig(
        tmp_path, tmp_path / "run", Plan("t", ("tumour",)), tuple(DatasetEntry(f"D{n}") for n in (1, 2, 3))
    )
    parts = divide(config)
    trained, held = ({files.patient for part in parts for files in part[side]} for side in (0, 1))
    assert not trained & held and "a" in held
    assert all(kept for kept, _ in parts) and all(validating for _, validating in parts)
