"""Follow-ups: what a line means after earlier turns, and that it is answered as the full question is."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import LABELS
from typer.testing import CliRunner

from vlm.cli import app
from vlm.data.wordings import enumerate_things, placeholders, read_wordings
from vlm.facts import FACTS, NAMES
from vlm.heads.reading import Focus
from vlm.infer.conversation import ASK, PAIRS, Conversation, resolve
from vlm.infer.engine import Engine, Scan
from vlm.infer.turns import Turn, in_full, name_in
from vlm.scene import Scene
from vlm.schema import Answer, Question

LARGE, MIDDLE, SMALL, RIGHT, LEFT = 1, 2, 3, 4, 5  # the phantom's instances: tumours left, right, right, two parotids
MEASURED = tuple(name for name, fact in FACTS.items() if fact.attribute)
FOLLOW_UPS = {
    "long_axis": ("how long is it?", "And its longest diameter?"),
    "short_axis": ("its short axis?", "And the minor axis?"),
    "diameter_3d": ("and the 3D diameter?", "What is its largest 3D diameter?"),
    "craniocaudal": ("how tall is it?", "and its craniocaudal extent"),
    "volume": ("and its volume?", "Volume?", "how many ml is it?", "What about its volume, please?"),
    "intensity": ("how dense is it?", "Its mean HU?"),
    "side": ("which side?", "Is it left or right?", "and the side?"),
    "box": ("where is it?", "And where is that one located?"),
}


@pytest.fixture(scope="module")
def scan(engine: Engine, phantom_files: Path) -> Scan:
    return engine.open(phantom_files / "scan_0000.nii.gz", phantom_files / "masks" / "scan.nii.gz", LABELS)


def turn(scene: Scene, fact: str, *ids: int, target: int | None = None) -> Turn:
    """A turn about the instances with these ids."""
    subject, other = (tuple(i for i in scene.instances if i.id in some) for some in (ids, (target,)))
    return Turn("?", "?", Answer("", "", ""), fact, subject, other, tuple(i.label for i in subject))


class Oracle(Engine):
    """Reads the questions it was told of as told; for any other the readings of an untrained model."""

    def __init__(self, engine: Engine, known: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        super().__init__(engine.model, engine.segmenter, engine.encoder, engine.version)
        self.known = known

    def reply(self, scan, question, focus=None):  # type: ignore[no-untyped-def]
        if focus is None and question.question in self.known:
            focus = Focus(*self.known[question.question])
        return super().reply(scan, question, focus)


def full(scene: Scene, fact: str, *ids: int) -> str:
    names = [f"the {name_in(scene, i)}" for n in ids for i in scene.instances if i.id == n]
    return ASK[fact].format(things=names[0], target=names[-1])


def said(answer: Answer) -> dict[str, object]:
    """What an answer says, without what it took."""
    return answer.to_json() | {"seconds": 0, "confidence": 0}


@pytest.mark.parametrize(("first_fact", "start"), [("volume", LARGE), ("box", SMALL), ("side", LEFT)])
def test_a_follow_up_says_what_the_full_question_says(engine: Engine, scan: Scan, first_fact: str, start: int) -> None:
    scene = scan.scene
    told = {full(scene, f, i.id): (f, (i.id,)) for f in FOLLOW_UPS for i in scene.instances}
    oracle = Oracle(engine, told)
    talk = Conversation(oracle, scan)
    talk.ask(full(scene, first_fact, start))
    for fact, lines in FOLLOW_UPS.items():
        expected = said(oracle.ask(scan, full(scene, fact, start)))
        for line in lines:  # each leans on the one before
            given = said(talk.ask(line))
            assert given == expected, (fact, line)
            assert talk.turns[-1].asked == full(scene, fact, start)


@pytest.mark.parametrize("fact", MEASURED)
def test_another_one_goes_on_with_the_fact(scan: Scan, fact: str) -> None:
    scene, about = scan.scene, turn(scan.scene, fact, LARGE)
    for line, wanted in [
        ("and the second largest?", MIDDLE),
        ("what about the smallest one?", SMALL),
        ("the third", SMALL),
        ("and the left one?", LARGE),
        ("What about the left parotid gland?", LEFT),
        ("and the parotid on the right?", RIGHT),
    ]:
        found = resolve(line, [about], scene)
        assert found and found.text == full(scene, fact, wanted) and found.fact == fact, line
    parotid = resolve("and the left one?", [turn(scene, fact, RIGHT)], scene)
    other = resolve("the other one?", [turn(scene, fact, LEFT)], scene)
    assert parotid and other and [parotid.subject[0].id, other.subject[0].id] == [LEFT, RIGHT]


@pytest.mark.parametrize(
    ("before", "line", "fact", "ids"),
    [
        (LARGE, "compare with the second largest", "larger", (LARGE, MIDDLE)),
        (SMALL, "Is it larger than the largest one?", "larger", (LARGE, SMALL)),
        (RIGHT, "which one is larger?", "larger", (RIGHT, LEFT)),
        (LARGE, "how far is it from the left parotid?", "distance", (LARGE, LEFT)),
        (SMALL, "Distance to the second largest?", "distance", (SMALL, MIDDLE)),
        (MIDDLE, "What is the distance between it and the right parotid gland?", "distance", (MIDDLE, RIGHT)),
        (LEFT, "how far apart are they?", "distance", (LEFT, RIGHT)),
    ],
)
def test_pairs(engine: Engine, scan: Scan, before: int, line: str, fact: str, ids: tuple[int, int]) -> None:
    asked = full(scan.scene, "volume", before)
    talk = Conversation(Oracle(engine, {asked: ("volume", (before,))}), scan)
    talk.ask(asked)
    answer = talk.ask(line)
    whole, _ = engine.reply(scan, Question("question", "phantom", full(scan.scene, fact, *ids)), Focus(fact, ids))
    assert {e["instance"] for e in answer.evidence} == set(ids) and talk.turns[-1].fact == fact
    assert answer.value == whole.value


def test_a_comparison_of_two_tumours_tells_them_apart(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"?": ("volume", (MIDDLE,))}), scan)
    talk.ask("?")
    answer = talk.ask("compare it with the largest")
    assert answer.choice == "largest tumour"
    assert answer.text == "The largest tumour is larger: 4.1 ml against 1.7 ml for the second largest tumour."


def test_a_distance_keeps_its_subject_and_changes_its_end(scan: Scan) -> None:
    first = turn(scan.scene, "distance", LARGE, target=LEFT)
    for line, pair in [("and from the right parotid?", (LARGE, RIGHT)), ("and the second largest?", (MIDDLE, LEFT))]:
        found = resolve(line, [first], scan.scene)
        assert found and (found.subject[0].id, found.target[0].id) == pair


def test_after_a_distance_of_two_and_a_comparison(scan: Scan) -> None:
    both = turn(scan.scene, "distance", LARGE, RIGHT)
    assert resolve("the smallest", [both], scan.scene) is None
    end = resolve("and the left parotid gland?", [both], scan.scene)
    assert end and (end.subject[0].id, end.target[0].id) == (LARGE, LEFT)
    far = resolve("and the larynx?", [both], scan.scene)
    assert far and far.lacking == "larynx"
    larger = resolve("and the smallest?", [turn(scan.scene, "larger", LARGE)], scan.scene)
    assert larger and (larger.subject[0].id, larger.target[0].id) == (LARGE, SMALL)


@pytest.mark.parametrize(
    ("line", "fact", "ids"),
    [
        ("where are they?", "box", (LARGE, MIDDLE, SMALL)),
        ("how many of them are larger than 1 ml?", "count", (LARGE, MIDDLE, SMALL)),
        ("and on the right?", "count", (MIDDLE, SMALL)),
        ("which one is the largest?", "box", (LARGE,)),
        ("the smallest one?", "box", (SMALL,)),
    ],
)
def test_several(scan: Scan, line: str, fact: str, ids: tuple[int, ...]) -> None:
    found = resolve(line, [turn(scan.scene, "count", LARGE, MIDDLE, SMALL)], scan.scene)
    assert found and found.fact == fact and tuple(i.id for i in found.subject) == ids


def test_the_other_side_after_several_of_one_side(scan: Scan) -> None:
    follow = resolve("And on the left?", [turn(scan.scene, "count", MIDDLE, SMALL)], scan.scene)
    assert follow is not None and [i.id for i in follow.subject] == [LARGE]


def test_another_unit_asks_for_another_measure(engine: Engine, scan: Scan) -> None:
    talk = Conversation(engine, scan)
    talk.turns.append(turn(scan.scene, "long_axis", LARGE))
    answer = talk.ask("and in ml?")
    assert answer.unit == "ml" and answer.value == pytest.approx(scan.scene.instances[0].volume_ml, abs=1e-3)


def test_thresholds_stay_in_the_full_question(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"?": ("count", (LARGE, MIDDLE, SMALL))}), scan)
    assert talk.ask("?").value == 3
    assert talk.ask("and how many of them are larger than 1 ml?").value == 2
    assert talk.ask("How many are over 1.8 cc?").value == 1
    assert talk.ask("the largest one?").boxes
    assert talk.ask("is it larger than 5 ml?").choice == "no"


def test_what_may_be_several_is_asked_back_and_the_reply_goes_on(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"?": ("count", (LARGE, MIDDLE, SMALL))}), scan)
    talk.ask("?")
    back = talk.ask("how many ml is it?")
    assert back.abstained and "several" in (back.reason or "") and back.type == "measurement"
    assert back.text == "Which one do you mean: the largest tumour, the second largest tumour or the smallest tumour?"
    answer = talk.ask("the second largest")
    assert answer.value == pytest.approx(1.728) and answer.unit == "ml"
    assert talk.ask("how far is it from the other one?").abstained
    assert talk.ask("the left one").value == pytest.approx(
        float(np.linalg.norm(np.subtract(*(scan.scene.instances[n].center_mm for n in (0, 1))))), abs=1e-3
    )


def test_what_the_scan_lacks(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"?": ("volume", (LARGE,))}), scan)
    talk.ask("?")
    for line, name in [("how far is it from the brainstem?", "brainstem"), ("and from the liver?", "liver")]:
        far = talk.ask(line)
        assert far.abstained and far.value is None and f"the {name}" in (far.reason or "")
    assert talk.ask("and its volume?").value == pytest.approx(4.096), "the talk is still about the tumour"
    assert "liver" in (talk.ask("and the liver?").reason or "")
    assert "liver" in (talk.ask("which side?").reason or ""), "the liver is what was spoken of last"
    talk.reset()
    talk.ask("?")
    assert "fifth largest tumour" in (talk.ask("and the fifth?").reason or "")
    right = replace(scan, scene=replace(scan.scene, instances=[i for i in scan.scene.instances if i.id != LARGE]))
    found = resolve("is there one on the left?", [turn(right.scene, "count", MIDDLE, SMALL)], right.scene)
    alone = replace(scan.scene, instances=[i for i in scan.scene.instances if i.id in (LARGE, LEFT)])
    other = resolve("the other one?", [turn(alone, "volume", LARGE)], alone)
    assert other and other.lacking == "other tumour"
    assert found and found.subject == () and found.lacking == "left-sided tumour"


def test_without_a_turn_before_or_after_a_reset_a_line_is_asked_alone(engine: Engine, scan: Scan) -> None:
    oracle = Oracle(engine, {"?": ("volume", (LARGE,))})
    talk = Conversation(oracle, scan)
    alone = said(engine.ask(scan, "and its volume?"))
    assert said(talk.ask("and its volume?")) == alone
    talk.reset()
    talk.ask("?")
    assert talk.ask("and its volume?").value == pytest.approx(4.096)
    talk.reset()
    assert talk.turns == [] and said(talk.ask("and its volume?")) == alone


LATER = [
    "Is it a CT or an MR?",
    "What is the volume of its necrotic core?",
    "Is there a larynx?",
    "the volume of the left frobnicator",
    "How large is the tumour in this scan?",
    "What is the distance from it to the carina?",
    "thanks",
    "",
]


@pytest.mark.parametrize("line", LATER)
def test_what_is_not_understood_in_full_is_no_follow_up(scan: Scan, line: str) -> None:
    follow = resolve(line, [turn(scan.scene, "volume", LARGE)], scan.scene)
    assert follow is None


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_no_full_question_is_taken_for_a_follow_up(scan: Scan, part: str) -> None:
    wordings = read_wordings()
    slots = {"thing": "the largest tumour", "noun": "left parotid gland", "some": "a tumour on the left"}
    slots |= {"things": "tumours", "list": enumerate_things(["the larynx", "the left parotid"]), "size": "over 5 ml"}
    slots |= {"a": "the left parotid gland", "b": "the smallest tumour"}
    turns = [turn(scan.scene, fact, LARGE) for fact in ("volume", "distance")]
    for fact, before in itertools.product(FACTS, turns):
        for wording in wordings.facts[fact][part]:
            text = wording.format(**{name: slots[name] for name in placeholders(wording)})
            follow = resolve(text, [before], scan.scene)
            assert follow is None or follow.fact == fact, text


def test_confidence_of_a_follow_up_is_the_routers(engine: Engine, scan: Scan) -> None:
    question = Question("question", "phantom", "What is the volume of the largest tumour?")
    answer, reading = engine.reply(scan, question, Focus("volume", (LARGE,)))
    scores = engine.model.read(scan.scene, scan.opened, question.question, (), reading.mention)
    assert answer.confidence == pytest.approx(float(torch.softmax(scores.router, 0)[NAMES.index("volume")]))


def test_stream_and_chat(
    engine: Engine, scan: Scan, phantom_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = Oracle(engine, {"How big is the largest tumour?": ("long_axis", (LARGE,))})
    oracle.open = lambda volume: scan  # type: ignore[method-assign,assignment]
    *words, last = Conversation(oracle, scan).stream("How big is the largest tumour?")
    assert isinstance(last, Answer) and "".join(map(str, words)) == last.text
    monkeypatch.setattr(Engine, "load", staticmethod(lambda name, device: oracle))
    lines = ["How big is the largest tumour?", "and its volume?", f"/save {tmp_path}", "/reset", f"/save {tmp_path}"]
    done = CliRunner().invoke(app, ["chat", str(phantom_files / "scan_0000.nii.gz")], input="\n".join(lines) + "\n")
    assert done.exit_code == 0, done.output
    assert "The largest tumour has a volume of 4.1 ml." in done.output and "Nothing asked yet." in done.output
    history = json.loads((tmp_path / "history.json").read_text())
    assert history[1]["question"] == "and its volume?" and history[1]["answer"]["value"] == pytest.approx(4.096)
    assert history[1]["asked"] == "What is the volume of the largest tumour?" and "asked" not in history[0]
    assert set(PAIRS) < set(ASK)


def test_how_sure_and_in_another_unit(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"How long?": ("long_axis", (LARGE,))}), scan)
    assert "confidence of that answer" not in talk.ask("How sure are you?").text, "there is no answer yet"
    talk.reset()
    first = talk.ask("How long?")
    sure = talk.ask("and how sure are you?")
    assert sure.text == f"The confidence of that answer is {first.confidence:.2f}." and sure.value is None
    assert sure.confidence == first.confidence and not sure.abstained
    other = talk.ask("And in cm?")
    assert other.unit == "cm" and other.value == pytest.approx(first.value / 10, abs=1e-3)
    assert talk.ask("its volume?").unit == "ml", "the talk goes on about it"


def test_by_how_much(engine: Engine, scan: Scan) -> None:
    known = {"Which is larger, the right parotid or the first tumour?": ("larger", (RIGHT, LARGE))}
    talk = Conversation(Oracle(engine, known), scan)
    talk.ask(next(iter(known)))
    more = talk.ask("And by how much?")
    large, right = (i for i in scan.scene.instances if i.id in (LARGE, RIGHT))
    assert more.value == pytest.approx(abs(large.volume_ml - right.volume_ml), abs=1e-3) and more.unit == "ml"
    assert {item["instance"] for item in more.evidence} == {LARGE, RIGHT}


def test_what_was_not_found_is_still_what_the_talk_is_about(engine: Engine, scan: Scan) -> None:
    organs = [i for i in scan.scene.instances if i.label != "tumour"]
    keep = np.array([i.label != "tumour" for i in scan.scene.instances])
    scene = replace(scan.scene.showing(organs, scan.scene.pooled[keep]), classes=("parotid_left", "parotid_right"))
    healthy = replace(scan, scene=scene, opened=engine.model.open(scene))
    talk = Conversation(Oracle(engine, {"Is there a tumour?": ("presence", ())}), healthy)
    first = talk.ask("Is there a tumour?")
    assert first.abstained and first.reason == "the given labels do not name any lesion"
    assert talk.ask("and its volume?").reason == first.reason, "not that of another structure"


def test_pronouns_of_other_questions_are_said_in_full(scan: Scan) -> None:
    scene = scan.scene
    left = [turn(scene, "volume", LEFT)]
    assert in_full("does it hold a lesion?", left, scene) == "does the left parotid gland hold a lesion?"
    assert in_full("Is that enlarged?", left, scene) == "Is the left parotid gland enlarged?"
    assert in_full("its T stage?", left, scene) == "the left parotid gland's T stage?"
    both = [*left, turn(scene, "volume", LARGE)]
    two = "the left parotid gland and the largest tumour"
    assert in_full("How far are they from each other?", both, scene).strip() == f"How far are {two} ?"
    assert in_full("compare the two", both, scene) == f"compare {two}"
    assert in_full("what is their total volume?", both, scene) == f"what is the total volume of {two}?"
    assert in_full("Is the larynx visible?", both, scene) == "Is the larynx visible?"
    assert in_full("does it hold a lesion?", [], scene) == "does it hold a lesion?", "nothing was spoken of"


def test_the_last_answer_again_in_another_unit(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"How long?": ("long_axis", (LARGE,))}), scan)
    length = talk.ask("How long?").value
    for line in ("convert that to cm", "and in cm?", "what is that in centimetres?"):
        answer = talk.ask(line)
        assert answer.unit == "cm" and answer.value == pytest.approx(length / 10, abs=1e-3), line


def test_they_are_all_of_those_spoken_of(scan: Scan) -> None:
    all_three, two = turn(scan.scene, "count", LARGE, MIDDLE, SMALL), "total volume of the two?"
    talk = [all_three, turn(scan.scene, "long_axis", LARGE), turn(scan.scene, "long_axis", SMALL)]
    of_all = "the largest tumour, the second largest tumour and the smallest tumour"
    assert in_full("are they on the same side?", talk, scan.scene) == f"are {of_all} on the same side?"
    assert in_full(two, talk, scan.scene) == "total volume of the largest tumour and the smallest tumour?"


def test_the_former_and_the_latter(scan: Scan) -> None:
    asked = "Is the right parotid gland larger than the left parotid gland?"
    compared = replace(turn(scan.scene, "larger", LEFT, target=RIGHT), asked=asked)
    assert in_full("where is the latter?", [compared], scan.scene) == "where is the left parotid gland?"
    assert in_full("where is the former?", [compared], scan.scene) == "where is the right parotid gland?"
    alone = turn(scan.scene, "volume", LEFT)
    assert in_full("where is the brainstem?", [alone], scan.scene) == "where is the brainstem?"


def test_after_a_comparison_it_is_the_larger(engine: Engine, scan: Scan) -> None:
    talk = Conversation(Oracle(engine, {"?": ("volume", (MIDDLE,))}), scan)
    talk.ask("?")
    talk.ask("compare it with the largest")
    assert [i.id for i in talk.turns[-1].subject] == [LARGE]
    assert talk.ask("and its volume?").value == pytest.approx(4.1, abs=0.05)


def test_the_big_one_and_the_small_one(scan: Scan) -> None:
    before = [turn(scan.scene, "count", LARGE, MIDDLE, SMALL)]
    for line, id in (("how long is the big one?", LARGE), ("how long is the small one?", SMALL)):
        found = resolve(line, before, scan.scene)
        assert found and [i.id for i in found.subject] == [id]
