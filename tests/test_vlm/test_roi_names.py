"""What people call ROIs and segments, and the classes meant."""

import pytest

from seg_backbone.errors import ConfigError
from seg_backbone.io.structures import Structure
from vlm.data.roi_names import plain, read_roi_names

RULES = read_roi_names()


@pytest.mark.parametrize(
    ("name", "class_"),
    [
        ("GTV", "tumour"),
        ("GTV-1", "tumour"),
        ("GTVp", "tumour"),
        ("GTV_Mass", "tumour"),
        ("GTVn_L", "tumour"),
        ("Neoplasm, Primary", "tumour"),
        ("Nodule 1 - Annotation 0A", "tumour"),
        ("lesion", "tumour"),
        ("Parotid_L", "parotid_left"),
        ("PAROTID RT", "parotid_right"),
        ("Lt Parotid", "parotid_left"),
        ("LParotid", "parotid_left"),
        ("ParotidL", "parotid_left"),
        ("parotid gland left", "parotid_left"),
        ("RightParotid", "parotid_right"),
        ("Parotids", "parotid"),
        ("SpinalCord", "spinal_cord"),
        ("SPINAL_CORD", "spinal_cord"),
        ("Cord", "spinal_cord"),
        ("BrainStem", "brainstem"),
        ("Bone_Mandible", "mandible"),
        ("Oesophagus", "esophagus"),
        ("Glnd_Submand_R", "submandibular_gland_right"),
        ("OpticNrv_L", "optic_nerve_left"),
        ("V_Venacava_I", "inferior_vena_cava"),
        ("Kidney_R", "kidney_right"),
        ("Lung-Left", "lung_left"),
        ("Lungs", "lungs"),
        ("Femur_Head_L", "femoral_head_left"),
        ("VB_L5", "vb_l5"),
        ("My Structure (new)", "my_structure_new"),
        ("PTV", "PTV"),
        ("PTV70", "PTV"),
        ("PTV_High", "PTV"),
        ("CTV 54Gy", "CTV"),
        ("ITV", "ITV"),
        ("GTV_Edema", None),
        ("GTV+5mm", None),
        ("GTV exp", None),
        ("IGTV", None),
        ("Lungs-GTV", None),
        ("Parotid_L-PTV", None),
        ("SpinalCord_PRV05", None),
        ("cord 3 mm", None),
        ("zPTVopt", None),
        ("_Ring", None),
        ("~Liver", None),
        ("BODY", None),
        ("External", None),
        ("CouchSurface", None),
        ("ring 2cm", None),
        ("Background", None),
        ("", None),
    ],
)
def test_names(name, class_):
    assert RULES.class_of(Structure(1, name)) == class_


@pytest.mark.parametrize(
    ("structure", "class_"),
    [
        (Structure(1, "boost", kind="PTV"), "PTV"),
        (Structure(1, "hull", kind="EXTERNAL"), None),
        (Structure(1, "left hilum", kind="GTV"), "tumour"),
        (Structure(1, "Liver", kind="PTV"), "liver"),  # the name is nearer to what was drawn than the kind
        (Structure(1, "Segment 3", coded="Kidney", side="right"), "kidney_right"),
        (Structure(1, "Kidney", coded="Kidney", side="right"), "kidney_right"),
        (Structure(1, "3", coded="Neoplasm"), "tumour"),
        (Structure(1, "Annotation 0A", coded="Nodule"), "tumour"),
        (Structure(1, "Segment_1"), "segment_1"),
        (Structure(1, "Organ X", coded="Tissue"), "organ_x"),
        (Structure(1, "", coded="Portal vein"), "portal_vein"),
    ],
)
def test_kinds_and_codes(structure, class_):
    assert RULES.class_of(structure) == class_


def test_a_file_of_ones_own_comes_first(tmp_path):
    path = tmp_path / "names.yaml"
    path.write_text(
        "tumour: [GTV_Edema, hot spot]\nkidney: [kidney_l, kidney_r]\nPTV: [boost]\nparotid: [ohr*]\n"
        "leave out: [lung*, 7]"
    )
    rules = read_roi_names(path)
    names = ["gtv_edema", "Hot Spot", "Kidney_L", "BOOST", "Ohrspeicheldruese_R", "Lung_L", "7", "GTV-2", "Heart"]
    assert [rules.class_of(Structure(1, name)) for name in names] == [
        "tumour", "tumour", "kidney", "PTV", "parotid", None, None, "tumour", "heart"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["[a, b]", "tumour: GTV", "tumour: [[GTV]]", "a: [b", ""])
def test_a_broken_file_is_one_line(tmp_path, text):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ConfigError, match="YAML of CLASS") as caught:
        read_roi_names(tmp_path / "names.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        read_roi_names(tmp_path / "none.yaml")


def test_words_of_a_name():
    assert plain("Glnd_Submand_L") == ("glnd submand", "left")
    assert plain("GTVp1 (left)") == ("gtvp #", "left")
    assert plain("R and L") == ("r and l", "")
    assert plain("L 5") == ("l #", "")
