"""Class names: the spellings of data sets and radiologists meet in one vocabulary."""

import json

import pytest

from seg_backbone.errors import LabelError
from seg_backbone.labels import (
    LESIONS,
    WORDS,
    canonical,
    display,
    is_lesion,
    other_side,
    read_label_file,
    read_labels,
    undrawn,
)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("RightParotid", "parotid_right"),
        ("Left Parotid", "parotid_left"),
        ("parotid right", "parotid_right"),
        ("parotid_left", "parotid_left"),
        ("right parotid gland", "parotid_right"),
        ("SpinalCord", "spinal_cord"),
        ("spinal-cord", "spinal_cord"),
        ("Spinal_Cord", "spinal_cord"),
        ("BrainStem", "brainstem"),
        ("Brainstem", "brainstem"),
        ("Oesophagus", "esophagus"),
        ("tumor", "tumour"),
        ("Tumour", "tumour"),
        ("Lesion", "tumour"),
        ("GTV", "tumour"),
        ("Mandible", "mandible"),
        ("LeftKidney", "kidney_left"),
        ("Left Adrenal Gland", "adrenal_gland_left"),
        ("Gall  Bladder", "gall_bladder"),
    ],
)
def test_canonical(spelling, name):
    assert canonical(spelling) == name
    assert canonical(name) == name


@pytest.mark.parametrize("name", WORDS)
def test_every_word_leads_to_its_class(name):
    for words in (name, *WORDS[name]):
        assert canonical(words) == name
        assert canonical(words.title()) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parotid_left", "left parotid gland"),
        ("tumour", "tumour"),
        ("kidney_left", "left kidney"),
        ("adrenal_gland_right", "right adrenal gland"),
        ("spinal_cord", "spinal cord"),
        ("aortic_arch", "aortic arch"),
    ],
)
def test_display(name, words):
    assert display(name) == words


def test_the_tables_name_known_classes():
    assert set(LESIONS) <= set(WORDS)


def test_the_other_side():
    assert other_side("parotid_left") == "parotid_right"
    assert other_side("adrenal_gland_right") == "adrenal_gland_left"
    assert other_side("spinal_cord") is other_side("left") is None


def test_the_older_form_of_id_to_name(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "tumor"}, "modality": {"0": "CT"}}))
    assert read_labels(path) == {"liver": 1, "tumour": 2}
    path.write_text(json.dumps({"labels": {"1": "liver", "2": "liver"}}))
    with pytest.raises(LabelError, match="one name for two ids"):
        read_labels(path)


def test_lesion_classes():
    names = ("tumour", "Liver tumor", "lung_nodule_left", "kidney_cyst", "liver", "muscle_mass", "masseter")
    assert [is_lesion(name) for name in names] == [True] * 4 + [False] * 3


def test_read_labels(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "RightParotid": 1, "Tumor": 2}, "numTraining": 3}))
    assert read_labels(path) == {"parotid_right": 1, "tumour": 2}
    path.write_text(json.dumps({"SpinalCord": 4}))
    assert read_labels(path) == {"spinal_cord": 4}


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"labels": {"tumour": "one"}}', '{"labels": {"tumour": [1, "b"]}}'])
def test_a_bad_label_file_is_one_line(tmp_path, text):
    path = tmp_path / "dataset.json"
    path.write_text(text)
    with pytest.raises(LabelError, match="dataset.json: expected") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


def test_two_spellings_of_one_class_do_not_swallow_each_other(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"tumor": 1, "lesion": 2}))
    with pytest.raises(LabelError, match="tumour"):
        read_labels(path)


def test_a_missing_label_file(tmp_path):
    with pytest.raises(LabelError, match="no such file"):
        read_labels(tmp_path / "none.json")


def read(tmp_path, **content):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return read_label_file(tmp_path / "dataset.json")


def test_regions_become_classes_of_one_value_and_unions_of_them(tmp_path):
    brats = {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing": 3}
    file = read(tmp_path, labels=brats, regions_class_order=[1, 2, 3])
    assert file.labels == {"whole_tumor_rest": 1, "tumor_core_rest": 2, "enhancing": 3}
    assert file.regions == {
        "whole_tumor": ("whole_tumor_rest", "tumor_core_rest", "enhancing"),
        "tumor_core": ("tumor_core_rest", "enhancing"),
    }
    file = read(tmp_path, labels={"kidney": [1, 2], "LeftKidney": 1, "RightKidney": 2})
    assert (file.labels, file.regions) == (
        {"kidney_left": 1, "kidney_right": 2},
        {"kidney": ("kidney_left", "kidney_right")},
    )
    file = read(tmp_path, labels={"a": [1, 2], "b": [2, 3]})  # they overlap, neither holds the other
    assert sorted(file.labels.values()) == [1, 2, 3]
    assert all(len(parts) == 2 for parts in file.regions.values())


def test_several_ignore_labels_of_different_meaning(tmp_path):
    labels = {"background": 0, "Tumor": 1, "larynx": 2, "ignore": 3, "ignore_b": [5, 6], "rim": 4}
    file = read(tmp_path, labels=labels, may_be={"rim": ["background", "Tumor"]})
    assert file.labels == {"tumour": 1, "larynx": 2}
    assert file.unsure == {3: (), 4: ("background", "tumour"), 5: (), 6: ()}
    assert read_labels(tmp_path / "dataset.json") == file.labels
    for may_be in ({"rim": ["liver"]}, {"nothing": ["Tumor"]}, ["rim"]):
        with pytest.raises(LabelError, match="dataset.json: expected"):
            read(tmp_path, labels=labels, may_be=may_be)


def test_what_a_model_never_draws_of_a_scheme():
    assert undrawn("flare24", ["tumour", "liver"]) == []
    assert undrawn("flare24", ["liver"]) == ["tumour"]
    assert undrawn("flare23", ["tumour", "esophagus"])[:2] == ["liver", "kidney_right"]
    assert undrawn("native", []) == []
