"""Reports: what the pages hold, that nothing from a file becomes markup, and that slices show what was drawn."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.answers import AnswerResults, Faults
from eval.reading import Item
from eval.references import Reference
from eval.report.answers import WORST_OF_TYPE, number_pairs, worst_rows
from eval.report.page import Example, Page, Plot, Section, render
from eval.report.slices import Folder, View, draw_slice, worst_slice
from eval.tables import Table
from seg_backbone.errors import InputError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.volume import Mask, Volume
from vlm.cli.evaluate import app

QUICK = ("--resamples", 20, "--jobs", 1, "--allow-missing")
EVIL = "<script>alert(1)</script> \"'& $x_{$ |"


class Reader(HTMLParser):
    """Tags that are open, addresses, scripts and words of a page."""

    VOID = ("meta", "br", "image", "path", "rect", "use", "img")

    def __init__(self, html):
        super().__init__()
        self.open, self.links, self.scripts, self.words = [], [], 0, ""
        self.feed(html)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action")]

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def read(path):
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    assert page.scripts == 1, "only our own script"
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", html)
    return page


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def folders(tmp_path):
    """Two cases on an anisotropic grid: one shifted, with its scan, one missing; a class name holds markup."""
    grid = Grid((20, 20, 8), np.diag([2.0, 2, 5, 1]))
    cube = np.zeros(grid.shape, dtype=np.uint8)
    cube[5:12, 5:12, 2:6] = 1
    for case in ("a", "b"):
        write_mask(Mask(cube, grid), tmp_path / "ref" / f"{case}.nii.gz")
    write_mask(Mask(np.roll(cube, 2, axis=0), grid), tmp_path / "pred" / "a.nii.gz")
    scan = np.random.default_rng(0).normal(0, 100, grid.shape).astype(np.float32)
    write_volume(Volume(scan, grid, "CT"), tmp_path / "scans" / "a_0000.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps({"tumour": 1, EVIL: 2}))
    return tmp_path


def test_masks_page_with_and_without_scans(folders):
    command = ("masks", folders / "pred", folders / "ref", "--labels", folders / "labels.json", *QUICK)
    run(*command, "-o", folders / "out", "--scans", folders / "scans")
    page = read(folders / "out" / "report.html")
    assert "alert(1)" in page.words  # the class's name, as words
    for words in ("a: tumour", "b: tumour", "Size and DSC", "Worst cases", "Every case", "Slice 3 of 8"):
        assert words in page.words
    assert sum(link.startswith("data:image/jpeg") for link in page.links) == 1  # case b has no scan
    assert "Without the scan" in page.words
    run(*command, "-o", folders / "plain")
    assert not any(link.startswith("data:") for link in read(folders / "plain" / "report.html").links)


def test_masks_page_of_a_perfect_folder_and_of_scans_that_do_not_fit(folders):
    command = ("masks", folders / "ref", folders / "ref", "--labels", folders / "labels.json", *QUICK)
    run(*command, "-o", folders / "out")
    assert "Worst cases" not in read(folders / "out" / "report.html").words
    grid = Grid((20, 20, 9), np.diag([2.0, 2, 5, 1]))
    scan = np.random.default_rng(0).normal(0, 100, grid.shape).astype(np.float32)
    write_volume(Volume(scan, grid, "CT"), folders / "scans" / "a_0000.nii.gz")
    run("masks", folders / "pred", *command[2:], "-o", folders / "out", "--scans", folders / "scans")
    assert "expected the grid of" in read(folders / "out" / "report.html").words
    missing = CliRunner().invoke(app, [*map(str, command), "-o", "x", "--scans", str(folders / "none")])
    assert isinstance(missing.exception, InputError)


@pytest.fixture
def questions(folders):
    """One question a type with an answer each, most of them wrong and confident; ids and texts hold markup."""
    box = {"label": "tumour", "min_mm": [9, 9, 7], "max_mm": [23, 23, 28]}
    evidence = {"label": "tumour", "volume_ml": 3.9, "long_axis_mm": 14.0, "slice": {"axis": "axial", "index": 4}}
    asked = [
        {"type": "classification", "options": ["yes", "no"], "answer": "yes"},
        {"type": "counting", "answer": 1},
        {"type": "detection", "answer": [box]},
        {"type": "open", "answer": "a large tumour"},
        *({"type": "measurement", "unit": "mm", "answer": 10 + n} for n in range(6)),
    ]
    given = [
        {"choice": "no", "confidence": 0.9},
        {"value": 3, "confidence": 0.8, "evidence": [evidence]},
        {"boxes": [{**box, "max_mm": [40, 40, 38]}], "confidence": 0.7},
        {"text": EVIL},
        *({"value": 12 + 2 * n, "unit": "mm", "confidence": n / 6, "evidence": [evidence]} for n in range(6)),
    ]
    shared = {"image": "a_0000.nii.gz", "question": EVIL}
    asked = [
        {"id": f"{EVIL}{n}", **shared, "patient": f"p{n}", "region": f"part {n % 2}", **one}
        for n, one in enumerate(asked)
    ]
    given = [{"id": question["id"], **one} for question, one in zip(asked, given, strict=True)]
    for name, lines in (("questions", asked), ("answers", given)):
        (folders / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folders


def test_answers_page(questions):
    command = ("answers", questions / "answers.jsonl", "--reference", questions / "questions.jsonl", "--resamples", 20)
    pictures = ("--scans", questions / "scans", "--masks", questions / "pred", "--labels", questions / "labels.json")
    run(*command, "-o", questions / "out", *pictures)
    page = read(questions / "out" / "report.html")
    for words in (
        "By region",
        "part 1",
        "Reliability",
        "Risk and coverage",
        "Measurement, mm: 6 answers",
        "Slice 5 of 8",
    ):
        assert words in page.words
    html = (questions / "out" / "report.html").read_text()
    assert sum(link.startswith("data:image/jpeg") for link in page.links) == 6  # classification and open name no slice
    assert 'class="outline prediction"' in html
    assert len(re.findall(r"<rect [^>]*stroke-dasharray", html)) == 2  # the boxes of reference and answer
    run(*command, "-o", questions / "plain")
    assert not any(link.startswith("data:") for link in read(questions / "plain" / "report.html").links)


def test_pages_of_a_ranking_and_of_a_comparison(questions):
    right = [json.loads(line) for line in (questions / "questions.jsonl").read_text().splitlines()]
    fields = {"classification": "choice", "detection": "boxes", "open": "text"}
    lines = [{"id": q["id"], fields.get(q["type"], "value"): q["answer"]} for q in right]
    (questions / "right.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("answers", "right"):
        files = (questions / f"{name}.jsonl", "--reference", questions / "questions.jsonl")
        baseline = ("--baseline-train", questions / "questions.jsonl", "--resamples", 20)
        run("answers", *files, "-o", questions / f"<b>{name}", *baseline)
    results = (questions / "<b>answers", questions / "<b>right")
    run("rank", *results, "-o", questions / "rank", "--resamples", 50)
    page = read(questions / "rank" / "report.html")
    for words in ("Leaderboard of 3 systems", "<b>right", "majority/median", "Places", "Significance, counting"):
        assert words in page.words
    for name in ("places", "scores", "significance"):
        assert (questions / "rank" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    run("compare", *results, "-o", questions / "compare", "--resamples", 50)
    page = read(questions / "compare" / "report.html")
    assert page.words.count("alert(1)") >= 10  # the questions that changed, in words
    changed = json.loads((questions / "compare" / "comparison.json").read_text())["changed"]
    assert changed["counting"] == {"a_better": [], "b_better": [{"case": f"{EVIL}1", "a": 0.0, "b": 1.0}]}


def test_markup_in_any_field_stays_words():
    table = Table(EVIL, [EVIL, "n"], [[EVIL, "1"]], [EVIL])
    section = Section(EVIL, EVIL, [table], [Plot(EVIL, "<svg></svg>", EVIL)], [Example(EVIL, [(EVIL, EVIL)], "", EVIL)])
    page = Reader(render(Page(EVIL, [(EVIL, EVIL)], [section, Section("empty")])))
    assert page.scripts == 1
    assert page.words.count("alert(1)") == 16
    assert "empty" not in page.words


def test_the_worst_slice_is_where_the_masks_differ_most():
    """Two voxels differ in slice 1, three in slice 2; on a flipped grid the same slice of the patient is shown."""
    reference = np.zeros((4, 4, 3), dtype=bool)
    prediction = reference.copy()
    reference[0, :2, 1] = prediction[0, :3, 2] = True
    view = worst_slice(reference, prediction, Grid((4, 4, 3), np.diag([1.0, 2, 3, 1])))
    assert (view.number, view.of, view.spacing_mm.tolist()) == (3, 3, [1, 2])
    assert (int(view.reference.sum()), int(view.prediction.sum())) == (0, 3)
    flipped = worst_slice(reference, prediction, Grid((4, 4, 3), np.diag([-1.0, 2, -3, 1])))
    assert flipped.number == 1
    np.testing.assert_array_equal(flipped.prediction, view.prediction[::-1])
    assert worst_slice(reference & False, None, Grid((4, 4, 3), np.eye(4))) is None
    assert worst_slice(reference, None, Grid((4, 4, 3), np.eye(4))).prediction is None


def test_a_slice_shows_the_patients_right_on_the_left_and_anterior_up():
    """One voxel at the right front corner of a 2 x 3 slice, drawn whole: its outline is the top left pixel."""
    mask = np.zeros((2, 3), dtype=bool)
    mask[1, 2] = True
    svg = draw_slice(View(np.array([1.0, 2.0]), 1, 1, prediction=mask))
    assert 'viewBox="0 0 2 6"' in svg
    outline = re.search(r'class="outline prediction" d="([^"]*)"', svg)[1]
    assert sorted(re.findall(r"M\d \d[vh]1", outline)) == ["M0 0h1", "M0 0v1", "M0 1h1", "M1 0v1"]
    assert 'class="prediction-area" d="M0 0h1v1h-1z"' in svg


def test_a_file_is_found_by_its_path_or_by_its_case(folders):
    scans = Folder(folders / "scans")
    assert scans.require("a") == scans.require("a_0000.nii.gz") == scans.require("elsewhere/a_0000.nii.gz")
    with pytest.raises(InputError, match="file of b"):
        scans.require("b")


def test_the_most_confident_wrong_answers_come_first():
    def item(number, state="answered", prediction=3.0, confidence=0.5, kind="counting", answer=2.0):
        reference = Reference(str(number), kind, kind, "p", None, "mm" if kind == "measurement" else None, answer)
        return Item(reference, state, prediction, confidence=confidence)

    items = [
        item(0, "unreadable", None, None),
        item(1, prediction=2.0, confidence=1.0),
        item(2, confidence=0.9),
        item(3, prediction=20.0),
        item(4),
        item(5, "unscored", None, None),
        item(7, "abstained", None, answer=None),
        *(item(n, kind="measurement", answer=10.0, prediction=10.5) for n in (8, 9)),
    ]
    results = AnswerResults("a", items, Faults(), {})
    assert [one["id"] for one in worst_rows(results)] == ["2", "3", "4", "0"]
    pairs = number_pairs(results)
    assert list(pairs) == [("measurement", "mm")] and pairs["measurement", "mm"].tolist() == [[10, 10.5]] * 2
    many = AnswerResults("a", [item(n) for n in range(1000)], Faults(), {})
    assert len(worst_rows(many)) == WORST_OF_TYPE
