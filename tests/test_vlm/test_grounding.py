"""Which classes a text names: synonyms, plurals, sides, and anatomy the checkpoint does not know."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import vlm
from seg_backbone.labels import WORDS
from vlm.grounding import find_mentions, mentions_in, one_slip, split_side, words_for

ALL = tuple(WORDS)
BOTH = {"parotid_left", "parotid_right"}
TABLE = Path(vlm.__file__).with_name("names.yaml")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("How big is the tumor?", {"tumour"}),
        ("MASSES?", {"tumour"}),
        ("volume of the left parotid gland", {"parotid_left"}),
        ("left-sided parotid", {"parotid_left"}),
        ("Which parotid gland is larger?", {"parotid_left", "parotid_right"}),
        ("left or right parotid", {"parotid_left", "parotid_right"}),
        ("oesophagus visible?", {"esophagus"}),
        ("distance from the lesion to the cord", {"tumour", "spinal_cord"}),
        ("What is the capital of France?", set()),
        ("", set()),
        ("both parotids", {"parotid_left", "parotid_right"}),
        ("oesophageal volume", {"esophagus"}),
        ("the laryngeal extent", {"larynx"}),
        ("mandibular height", {"mandible"}),
        ("the tumor's volume", {"tumour"}),
        ("left-sided mass", {"tumour"}),
        ("Right-sided parotid's volume", {"parotid_right"}),
    ],
)
def test_known_classes(text: str, classes: set[str]) -> None:
    assert set(find_mentions(text, ALL).classes) == classes


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tumour", "neoplasm, GTV, GTVp, malignancy, malignancies, liposarcomas, STS, expansile process, new growth"),
        ("tumour", "bone sarcoma, nasopharyngeal carcinoma, pleomorphic sarcoma, soft-tissue mass, glioblastomata"),
        ("brainstem", "BrainStem, brain-stem, stem of the brain, truncus encephali, trunci encephali"),
        ("brainstem", "encephalic trunk, Brainstem_Core, brainstems, BS, cerebral trunk, brain stalk"),
        ("spinal_cord", "SpinalCord, spinal-cord, cord, myelon, medulla spinalis, medullae spinales, spinal chord"),
        ("spinal_cord", "SpinalCord_PRV05, cord of the spine, cervical cord, nerve cord in the back"),
        ("parotid_left", "Parotid_L, Glnd_Parotid_L, glandula parotidea sinistra, glandula parotis sinistra, left PG"),
        ("parotid_left", "salivary gland in front of the left ear, L parotid, lt. parotid, parotid gland (left)"),
        ("parotid_left", "parotid of the patient's left side, left-hand parotid, leftparotid"),
        ("parotid_right", "Parotid_R, GlnParotid_R, parotis dextra, right glandulae parotes, right cheek gland"),
        ("esophagus", "oesophagus, œsophagus, gullet, food-pipe, swallowing tube, esoph, Esophagus_S"),
        ("larynx", "laryngeal, larynges, voice-box, voicebox, organ of voice, box of the voice, vocal organ"),
        ("mandible", "mandibula, mandibular bone, lower jawbone, jaw, Bone_Mandible, os mandibulare, inferior maxilla"),
        ("mandible", "bone of the lower jaw, jaw-bone, chinbone, bottom jaw, ossa mandibularia"),
    ],
)
def test_names_of_the_shipped_classes(name: str, words: str) -> None:
    for word in words.split(", "):
        mention = find_mentions(f"What is the volume of the {word}?", ALL)
        assert (mention.classes, mention.others) == ((name,), ()), word


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("distance between the left parotid and the tumour on the right", {"parotid_left", "tumour"}),
        ("left parotid versus the right one", BOTH),
        ("Is the parotid larger on the left or on the right?", BOTH),
        ("R/L parotids", BOTH),
        ("On the right, how big is the parotid?", {"parotid_right"}),
        ("parotid volume in L", BOTH),  # litres
        ("how big r the parotids", BOTH),
        ("all right, and the parotids?", BOTH),
        ("largest salivary gland", BOTH),
        ("salivary gland on the left", {"parotid_left"}),
    ],
)
def test_a_side_belongs_to_the_structure_beside_it(text: str, classes: set[str]) -> None:
    assert set(find_mentions(text, ALL).classes) == classes


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("ramus of the left mandible", "ramus of the mandible"),
        ("mandibular ramus", "mandibular ramus"),
        ("jaw joint", "temporomandibular joint"),
        ("upper jaw", "maxilla"),
        ("superficial lobe of the right parotid", "lobe of the parotid"),
        ("parotid duct", "parotid duct"),
        ("parotid lymph nodes", "parotid lymph nodes"),
        ("the wall of the oesophagus", "wall of the esophagus"),
        ("recurrent laryngeal nerve", "recurrent laryngeal nerve"),
        ("Adam's apple", "thyroid cartilage"),
        ("vocal folds", "vocal cord"),
        ("epiglottis", "epiglottis"),
        ("spinal canal", "spinal canal"),
        ("backbone", "spine"),
        ("windpipe", "trachea"),
        ("Glnd_Submand_L", "submandibular gland"),
        ("medulla oblongata", "medulla oblongata"),
        ("pons", "pons"),
        ("fracture of the mandible", "fracture"),
        ("cyst in the left parotid", "cyst"),
        ("cord compression", "spinal cord compression"),
        ("lymph node metastases", "metastasis"),
        ("necrotic tumour core", "necrosis"),
        ("mass effect on the brainstem", "mass effect"),
        ("peritumoural edema", "oedema"),
        ("tumor bed", "tumour bed"),
        ("feeding tube", "catheter"),
        ("collar bone", "clavicle"),
        ("costae", "rib"),
        ("IVC", "inferior vena cava"),
        ("lobes of the lung", "lung lobe"),
    ],
)
def test_a_part_a_finding_and_a_neighbour_are_not_the_class(text: str, others: str) -> None:
    mention = find_mentions(f"Where is the {text}?", ALL)
    assert (mention.classes, mention.others) == ((), (others,))


@pytest.mark.parametrize("section", ["anatomy", "findings"])
def test_every_name_of_the_table_is_found_and_is_foreign_to_the_shipped_classes(section: str) -> None:
    for name, words in yaml.safe_load(TABLE.read_text("utf-8"))[section].items():
        for word in (name, *words):
            mention = find_mentions(f"Where is the {word}?", ALL)
            if name != "salivary gland":  # the parotid gland is one
                assert mention.classes == () and len(mention.others) == 1, word
                assert name in mention.others or word in words_for(mention.others[0]), word


def test_what_is_half_known_is_told_with_both_halves() -> None:
    mention = find_mentions("volume of the liver and the mandible together", ALL)
    assert (mention.classes, mention.others) == (("mandible",), ("liver",))
    mention = find_mentions("distance from the tumour to the skin", ALL)
    assert (mention.classes, mention.others) == (("tumour",), ("skin",))


def test_an_organ_before_a_lesion_is_its_place() -> None:
    labels = ("liver", "kidney_left", "kidney_right", "tumour")
    mention = find_mentions("How many liver tumours are there?", labels)
    assert (mention.classes, mention.places) == (("tumour",), ("liver",))
    assert find_mentions("left renal masses", labels).places == ("kidney_left",)
    assert find_mentions("liver, tumour: which is denser?", labels).classes == ("liver", "tumour")
    assert find_mentions("laryngeal cancer", ALL).classes == ("tumour",)


@pytest.mark.parametrize(
    ("labels", "text", "classes"),
    [
        ("liver right_kidney left_kidney postcava", "inferior vena cava", "postcava"),  # AMOS
        ("prostate_uterus bladder", "womb", "prostate_uterus"),
        ("portal_vein_and_splenic_vein inferior_vena_cava", "vena portae", "portal_vein_and_splenic_vein"),  # BTCV
        ("adrenal_gland_left adrenal_gland_right", "left suprarenal gland", "adrenal_gland_left"),
        ("kidney_left kidney_right", "ren dexter", "kidney_right"),
        ("liver gallbladder", "hepatic volume", "liver"),
        ("gall_bladder liver", "gallbladder", "gall_bladder"),
        ("lung_upper_lobe_left lung_lower_lobe_left", "LUL", "lung_upper_lobe_left"),  # TotalSegmentator
        ("lung_upper_lobe_left lung_lower_lobe_left", "lung", "lung_lower_lobe_left lung_upper_lobe_left"),
        ("vertebrae_L1 vertebrae_L2", "L2", "vertebrae_L2"),
        ("vertebrae_L1 vertebrae_L2", "vertebral bodies", "vertebrae_L1 vertebrae_L2"),
        ("rib_left_1 rib_right_1", "ribs on the left", "rib_left_1"),
        ("heart_ventricle_left heart_ventricle_right heart_atrium_left", "left ventricle", "heart_ventricle_left"),
        ("autochthon_left autochthon_right", "erector spinae", "autochthon_left autochthon_right"),
        ("clavicula_left clavicula_right", "left collarbone", "clavicula_left"),
        ("kidney kidney_tumor kidney_cyst", "renal mass", "kidney_tumor"),  # KiTS
        ("kidney kidney_tumor kidney_cyst", "renal cysts", "kidney_cyst"),
        ("kidney kidney_tumor kidney_cyst", "renal parenchyma", "kidney"),
        ("edema enhancing_tumor necrosis", "peritumoural oedema", "edema"),  # BraTS
        ("edema enhancing_tumor necrosis", "ET", "enhancing_tumor"),
        ("edema enhancing_tumor necrosis", "necrotic core", "necrosis"),
    ],
)
def test_labels_of_other_data_sets(labels: str, text: str, classes: str) -> None:
    mention = find_mentions(f"What is the volume of the {text}?", tuple(labels.split()))
    assert (sorted(mention.classes), mention.others) == (classes.split(), ())


@pytest.mark.parametrize("text", ["How big is the ET?", "whole tumour", "enhancing lesion"])
def test_a_kind_of_lesion_without_a_class_is_a_lesion(text: str) -> None:
    mention = find_mentions(text, ALL)
    assert mention.classes == (() if "ET" in text else ("tumour",)) and not mention.others


def test_every_way_to_write_a_structure() -> None:
    assert {"liver", "hepar", "hepatic"} <= set(words_for("liver"))
    assert {"parotid", "parotid gland", "parotis"} <= set(words_for("parotid_left"))
    assert {"kidney", "renal"} <= set(words_for("kidney_left")) and words_for("xyz") == ("xyz",)


@pytest.mark.parametrize(
    ("text", "others"),
    [("How large is the liver?", ("liver",)), ("left kidney volume", ("kidney",)), ("tumour volume", ())],
)
def test_anatomy_that_is_not_among_the_classes(text: str, others: tuple[str, ...]) -> None:
    assert find_mentions(text, ALL).others == others


def test_the_other_one_of_a_pair_is_another() -> None:
    one = ("kidney_left", "parotid_left", "tumour")
    assert find_mentions("volume of the right kidney", one).others == ("right kidney",)
    assert find_mentions("right parotid", one).others == ("right parotid",)
    assert find_mentions("volume of the left kidney", one).others == ()
    assert find_mentions("volume of the right kidney", (*one, "kidney_right")).others == ()


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        ("tumours in the liver", ("liver",)),
        ("the largest liver lesion", ("liver",)),
        ("a mass of the right kidney", ("kidney",)),
        ("a lump within his left lung", ("lung",)),
        ("volume of the liver and of the tumour", ()),
        ("tumours, the liver and the spleen", ()),
        ("tumours in the larynx", ()),
        ("the liver in this scan", ()),
    ],
)
def test_where_lesions_are_asked_about(text: str, elsewhere: tuple[str, ...]) -> None:
    assert find_mentions(text, ALL).elsewhere == elsewhere


def test_a_class_of_the_vocabulary_that_the_labels_lack_is_another() -> None:
    assert find_mentions("larynx volume", ("tumour",)).others == ("larynx",)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("tumuor", {"tumour"}),  # swapped
        ("tumours", {"tumour"}),
        ("tumuors", {"tumour"}),
        ("tumur", {"tumour"}),  # left out
        ("lesiion", {"tumour"}),  # added
        ("oesphagus", {"esophagus"}),
        ("mandibel", {"mandible"}),
        ("left paratid gland", {"parotid_left"}),  # exchanged
        ("brainsten", {"brainstem"}),
        ("larinxx", set()),  # two slips
        ("mess", set()),  # too short
    ],
)
def test_one_slip_of_the_fingers(text: str, classes: set[str]) -> None:
    assert set(find_mentions(text, ALL).classes) == classes


def test_slips_in_other_anatomy_and_in_foreign_classes() -> None:
    assert find_mentions("volume of the pancraes", ALL).others == ("pancreas",)
    assert find_mentions("the left kindey", ("kidney_left", "kidney_right")).classes == ("kidney_left",)


@pytest.mark.parametrize(
    "text",
    [
        "discord", "record", "recording", "accord", "massive", "massage", "masseter", "jawline", "regrowth", "tumult",
        "humour", "rumours", "dancer", "lesson", "legion", "cancel", "bullet", "session", "module", "discordant",
        "submandibular gland", "vocal cords", "spermatic cord", "body mass index", "muscle mass", "growth plates",
        "brain stem cells", "cord blood", "power cord", "umbilical cord", "mass effect", "mass spectrometry", "gland",
        "bone mass", "nodes of Ranvier", "tumour board", "centres of mass", "tumour marker", "back", "neck", "stem",
        "growth hormone", "structure", "plural", "corner", "region", "stages", "states", "coronal plane", "spelling",
        "spiral",
    ],
)  # fmt: skip
def test_false_friends(text: str) -> None:
    mention = find_mentions(f"What about the {text}?", ALL)
    assert mention.classes == () and not mention.lesions


def test_the_outer_wall_of_a_structure_is_its_surface() -> None:
    assert find_mentions("from the outer walls of the larynx", ALL).classes == ("larynx",)
    assert find_mentions("the wall of the larynx", ALL).classes == ()


def test_a_false_friend_of_anatomy_is_told() -> None:
    assert find_mentions("volume of the vocal cords", ALL).others == ("vocal cord",)
    assert find_mentions("volume of the submandibular gland", ALL).others == ("submandibular gland",)
    assert find_mentions("vocal cords", ("vocal_cord",)).classes == ("vocal_cord",)


@pytest.mark.parametrize("word", ["tumour", "oesophagus"])
def test_one_slip_is_one_edit(word: str) -> None:
    for n in range(len(word)):
        assert one_slip(word, word[:n] + word[n + 1 :]) and one_slip(word, word[:n] + "z" + word[n:])
        assert one_slip(word, word[:n] + "z" + word[n + 1 :])
    assert one_slip(word, word) and one_slip(word, word[1] + word[0] + word[2:])
    assert not one_slip(word, "zz" + word) and not one_slip(word, "z" + word[1:-1] + "z")


def test_foreign_classes_of_a_given_mask() -> None:
    labels = ("liver", "kidney_left", "kidney_right", "liver_lesion")
    assert find_mentions("volume of the left kidney", labels).classes == ("kidney_left",)
    assert "liver_lesion" in find_mentions("how many masses", labels).classes
    assert find_mentions("volume of the liver", labels).others == ()


def test_options_count_where_the_words_name_nothing() -> None:
    assert set(mentions_in("Which is larger?", ("left parotid", "right parotid"), ALL).classes) == {
        "parotid_left",
        "parotid_right",
    }
    assert mentions_in("Is the larynx there?", ("mandible",), ALL).classes == ("larynx",)


def test_split_side() -> None:
    assert split_side("parotid_left") == ("parotid", "left") and split_side("left_kidney") == ("kidney", "left")
    assert split_side("spinal_cord") == ("spinal_cord", None)
