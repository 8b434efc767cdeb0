"""Questions from a dataset of phantoms whose every answer is known: two tumours, two parotids, one paired CT and MR."""

import json
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from seg_backbone.cases import list_cases
from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, read_volume, write_mask, write_volume
from seg_backbone.labels import display
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask, Volume
from vlm.claims import as_asked
from vlm.cli.data import app
from vlm.data.check import find_faults
from vlm.data.questions import fat_percent, generate
from vlm.data.threshold import Threshold, parse_threshold
from vlm.facts import FACTS
from vlm.schema import read_questions

GRID = Grid((40, 32, 20), np.diag([2.0, 2.0, 3.0, 1.0]))
HEAD, LIMB_CT, LIMB_MR = "Dataset001_Head", "Dataset002_LimbCT", "Dataset003_LimbMR"
HEAD_LABELS = {"background": 0, "RightParotid": 1, "LeftParotid": 2, "Larynx": 3, "SpinalCord": 4, "Mandible": 5}
ABSENT = {LIMB_CT: ("parotid_left", "parotid_right", "larynx"), LIMB_MR: ("parotid_left", "parotid_right", "larynx")}
BLOCKS = {  # dataset -> label value -> index boxes
    HEAD: {
        1: [np.s_[28:34, 10:18, 6:14]],
        2: [np.s_[6:13, 10:18, 6:15]],
        3: [np.s_[18:23, 4:9, 2:7]],
        4: [np.s_[19:21, 20:22, 0:20]],
    },
    LIMB_CT: {1: [np.s_[4:12, 8:18, 4:12], np.s_[28:31, 20:24, 14:17]]},
    LIMB_MR: {1: [np.s_[4:12, 8:18, 4:12]]},
}


def write_case(root, dataset, case, labels, annotated, modality, region):
    """One case of the phantom: a body of 40 HU with a rim of fat, blocks of 60 HU."""
    codes = np.zeros(GRID.shape, dtype=np.uint8)
    for value, places in BLOCKS[dataset].items():
        for place in places:
            codes[place] = value
    array = np.full(GRID.shape, -1000 if modality == "CT" else 0, dtype=np.int16)
    array[2:38, 2:30] = -100 if modality == "CT" else 800
    array[4:36, 4:28] = 40 if modality == "CT" else 300
    array[codes > 0] = 60 if modality == "CT" else 500
    array[0, 0, 0] += sum(case.encode()) % 50  # no scan is another one's copy
    folder = root / dataset
    write_volume(Volume(array, GRID, modality[:2]), folder / "imagesTr" / f"{case}_0000.nii.gz")
    write_mask(Mask(codes, GRID), folder / "labelsTr" / f"{case}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": modality[:2]}}))
    row = {"dataset": dataset, "case": case, "modality": modality, "region": region, "annotated": annotated}
    with (root / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    drawn = ["RightParotid", "LeftParotid", "Larynx", "SpinalCord"]  # the mandible is unknown
    for case in ("hn_1", "hn_2"):
        write_case(folder, HEAD, case, HEAD_LABELS, drawn, "CT", "head and neck")
    tumour = {"background": 0, "tumour": 1}
    write_case(folder, LIMB_CT, "sarc_1", tumour, ["tumour"], "CT", "soft tissue")
    write_case(folder, LIMB_MR, "sarc_1", tumour, ["tumour"], "MR T1", "soft tissue")
    return folder


@pytest.fixture(scope="module")
def instances(root):
    """(dataset, instance id) -> instance; the two head cases are alike."""
    found = {}
    for dataset in (HEAD, LIMB_CT, LIMB_MR):
        files = list_cases(root, dataset)[0]
        volume = read_volume(files.image, files.modality)
        for instance in find_instances(read_mask(files.mask, files.labels), volume):
            found[dataset, instance.id] = instance
    return found


def ask(root, *datasets, per_case=200, **how):
    return list(generate(root, datasets or (HEAD, LIMB_CT, LIMB_MR), per_case=per_case, absent=ABSENT, **how))


@pytest.fixture(scope="module")
def questions(root):
    return [q for seed in range(3) for part in ("train", "heldout") for q in ask(root, seed=seed, wordings_part=part)]


def test_answers_are_those_of_the_named_instances(questions, instances):
    facts = Counter()
    for question in questions:
        fact, chosen = question.extra["fact"], question.extra["instances"]
        pieces = [instances[question.extra["dataset"], number] for number in chosen]
        about = FACTS[fact]
        assert (question.type, question.unit) == (about.kind, about.unit)
        if about.attribute:
            (piece,) = pieces
            assert question.answer == pytest.approx(getattr(piece, about.attribute), abs=1e-3)
        elif fact == "count":
            assert question.answer == len(pieces)
        elif fact == "presence":
            assert question.answer == as_asked(fact, "yes" if pieces else "no", question.question)
        elif fact == "box":
            assert question.answer == [{"label": display(p.label)} | p.box.to_json() for p in pieces]
        elif fact == "side":
            assert question.answer == pieces[0].side
        elif fact == "larger":
            larger = display(max(pieces, key=lambda p: p.volume_ml).label)
            assert question.answer == as_asked(fact, larger, question.question, question.options)
        elif fact == "multiplicity":
            assert question.answer == ("single" if len(pieces) == 1 else "multiple")
        elif fact == "distance":
            apart = np.linalg.norm(np.subtract(pieces[0].center_mm, pieces[1].center_mm))
            assert question.answer == pytest.approx(apart, abs=1e-3)
        elif fact == "contents":
            assert set(question.answer) == {display(p.label) for p in pieces}
        facts[fact] += 1
    # everything has one density, no lesion lies near an organ, no organ has a rule, there are fewer than three lesions
    beyond = {"nearest", "most_affected", "outlier", "clustered", "enlarged", "fatty", "denser", "asymmetric"}
    assert set(facts) == set(FACTS) - beyond - {"findings", "off_topic"}


def test_options_hold_the_answer_and_are_shuffled(questions):
    orders = set()
    for question in questions:
        assert bool(question.options) == (question.type in ("classification", "multilabel"))
        if question.type == "classification":
            assert question.answer in question.options
        if question.type == "multilabel":
            assert set(question.answer) <= set(question.options)
        if question.extra["fact"] == "modality":
            orders.add(question.options)
    assert len(orders) == 2


def test_nothing_is_asked_about_an_unknown_class(questions):
    for question in questions:
        if question.extra["dataset"] == HEAD:
            text = " ".join((question.question, *question.options)).lower()
            assert not any(word in text for word in ("mandible", "jaw", "brain"))
        elif question.extra["fact"] == "contents":
            assert question.answer == ["tumour"]
            assert set(question.options) == {"tumour", "larynx", "left parotid gland", "right parotid gland"}


def test_a_drawing_that_merely_ends_is_not_measured(questions, instances):
    cord = next(i.id for i in instances.values() if i.label == "spinal_cord")
    facts = {q.extra["fact"] for q in questions if q.extra["dataset"] == HEAD and q.extra["instances"] == [cord]}
    assert "intensity" in facts
    assert not facts & {"volume", "long_axis", "short_axis", "diameter_3d", "craniocaudal", "box"}


def test_thresholds_in_the_text_give_the_instances(questions, instances):
    seen = Counter()
    for question in questions:
        expected = question.extra.get("threshold")
        found = parse_threshold(question.question)
        assert (found is None) == (expected is None), question.question
        if found is None:
            continue
        threshold = Threshold(**expected)
        assert (found.attribute, found.op) == (threshold.attribute, threshold.op)
        assert found.value == pytest.approx(threshold.value)
        candidates = question.extra["candidates"]
        kept = [n for n in candidates if found.keeps(instances[question.extra["dataset"], n])]
        assert kept == question.extra["instances"]
        seen[bool(kept)] += 1
    assert min(seen[True], seen[False]) > 10


def test_answers_vary(questions):
    answers = {fact: Counter(q.answer for q in questions if q.extra["fact"] == fact) for fact in ("presence", "count")}
    share = answers["presence"]["yes"] / answers["presence"].total()
    assert 0.3 < share < 0.7
    assert {0, 1, 2} <= set(answers["count"])


def test_the_side_is_not_given_away(questions):
    for question in questions:
        if question.extra["fact"] == "side" and question.extra["dataset"] == HEAD:
            assert not any(
                word in question.question.lower() for word in ("right parotid", "left parotid", "-sided par")
            )


def test_hounsfield_units_are_asked_of_ct_only_and_fat_of_the_paired_ct(questions):
    of_mr = [q for q in questions if q.extra["dataset"] == LIMB_MR]
    assert not any(q.extra["fact"] == "intensity" for q in of_mr)
    fat = [q for q in of_mr if q.extra["fact"] == "fat_percent"]
    ct = next(q for q in questions if q.extra["dataset"] == LIMB_CT and q.extra["fact"] == "fat_percent")
    assert fat
    assert {q.answer for q in fat} == {ct.answer}
    assert {q.extra["measured_on"] for q in fat} == {"paired CT"}
    assert "measured_on" not in ct.extra


def test_fat_percent_of_a_box():
    array = np.full(GRID.shape, -1000, dtype=np.int16)
    array[5:15, 5:15, 5:15] = 50
    array[5:15, 5:15, 5:8] = -100  # 3 of 10 slices
    array[30:35, 20:25, 5:10] = -100  # a cushion apart from the body
    assert fat_percent(Volume(array, GRID, "CT")) == pytest.approx(30.0)
    assert fat_percent(Volume(np.full(GRID.shape, -1000, dtype=np.int16), GRID, "CT")) is None


def test_the_seed_decides(root):
    assert ask(root, seed=4, per_case=12) == ask(root, seed=4, per_case=12)
    assert ask(root, seed=4, per_case=12) != ask(root, seed=5, per_case=12)
    alone = ask(root, LIMB_CT, seed=4, per_case=12)
    among = [q for q in ask(root, seed=4, per_case=12) if q.extra["dataset"] == LIMB_CT]
    assert [q.question for q in alone] == [q.question for q in among]


def test_the_number_a_case_is_kept_and_open_questions_come_on_request(root):
    assert Counter(q.extra["patient"] for q in ask(root, HEAD, per_case=7)) == {"hn_1": 7, "hn_2": 7}
    facts = {q.extra["fact"]: q for q in ask(root, HEAD, include_open=True)}
    assert facts["findings"].answer is None
    assert facts["off_topic"].type == "open"


def test_parts_of_a_split(root):
    split = {"validation": ["hn_2", "sarc_1"]}
    assert {q.extra["patient"] for q in ask(root, split=split, part="training")} == {"hn_1"}
    assert {q.extra["patient"] for q in ask(root, split=split, part="validation")} == {"hn_2", "sarc_1"}
    with pytest.raises(ConfigError, match="part"):
        ask(root, split=split, part="test")
    with pytest.raises(ConfigError, match="split"):
        ask(root, part="training")


def test_a_scan_without_a_mask_is_asked_about_as_a_whole(tmp_path):
    write_case(tmp_path, HEAD, "hn_1", HEAD_LABELS, ["Larynx"], "CT", "head and neck")
    (tmp_path / HEAD / "labelsTr" / "hn_1.nii.gz").unlink()
    assert {q.extra["fact"] for q in ask(tmp_path, HEAD)} == {"modality", "region", "fat_percent"}


@pytest.mark.parametrize(("datasets", "base"), [((HEAD,), HEAD), ((HEAD, LIMB_CT), ".")])
def test_the_command_writes_what_the_schema_reads(root, tmp_path, datasets, base):
    out = tmp_path / "new" / "questions.jsonl"
    folders = [str(root / dataset) for dataset in datasets]
    absent = [f"--absent={LIMB_CT}=larynx, LeftParotid"]
    result = CliRunner().invoke(app, ["questions", *folders, "-o", str(out), "--per-case", "15", "--json", *absent])
    assert result.exit_code == 0, result.output
    found = list(read_questions(out))
    assert json.loads(result.stdout)["questions"] == len(found) > 20
    assert all((root / base / question.image).is_file() for question in found)
    assert [path.name for path in out.parent.iterdir()] == ["questions.jsonl"]


def test_a_failed_run_leaves_nothing(root, tmp_path):
    out = tmp_path / "questions.jsonl"
    result = CliRunner().invoke(app, ["questions", str(root / HEAD), "-o", str(out), "--wordings", "rude"])
    assert isinstance(result.exception, ConfigError)
    assert not list(tmp_path.iterdir())


def test_check_lists_each_fault(tmp_path):
    for case in ("hn_1", "hn_2", "hn_3", "hn_4"):
        write_case(tmp_path, HEAD, case, HEAD_LABELS, ["Larynx"], "CT", "head and neck")
    folder = tmp_path / HEAD
    assert find_faults(folder) == []
    assert CliRunner().invoke(app, ["check", str(folder)]).exit_code == 0
    (folder / "labelsTr" / "hn_1.nii.gz").unlink()
    moved = GRID.affine.copy()
    moved[0, 3] = 5
    write_mask(Mask(np.ones(GRID.shape, np.uint8), Grid(GRID.shape, moved)), folder / "labelsTr" / "hn_2.nii.gz")
    write_mask(Mask(np.full(GRID.shape, 9, np.uint8), GRID), folder / "labelsTr" / "hn_3.nii.gz")
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 2
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 3
    assert [word in line for word, line in zip(("no mask", "grid", "[9]"), lines, strict=True)] == [True] * 3
