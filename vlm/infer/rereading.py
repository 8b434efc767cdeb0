"""Rereading: what the words of a question say beyond doubt sets right what the network made of it.

Enters a Reading, leaves one whose fact (asked.py), instances (meant.py) and size are those that the words name: a
structure that is called by its name is meant whatever the pointer thinks of a class it never saw, "the largest organ"
is found by sorting, and "is its short axis above 5 cm?" compares that. What the words leave open stays as the network
read it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from seg_backbone.labels import is_lesion
from vlm.claims import is_claim
from vlm.data.threshold import Threshold, parse_per_cent, parse_within
from vlm.facts import FACTS, facts_of
from vlm.grounding import Mention, find_mentions
from vlm.heads.ranks import compared_by
from vlm.heads.reading import Reading
from vlm.infer.asked import GUESSED, MEASURED, asked_fact
from vlm.infer.meant import compared_kinds, meant
from vlm.plain_words import fact_in, plain_line, says
from vlm.scene import scene_classes

RULED = 0.9  # how sure a fact is that the words name


def reread(reading: Reading, off_topic: float, known: tuple[str, ...]) -> tuple[Reading, float]:
    """The reading and the probability that the question is not about the scan, both set right.

    known: the facts that the checkpoint tells apart; of them those that fit the declared type and unit may be read.
    """
    question = reading.question
    if says("abnormal", plain_line(question.question)) or says("recist_sum", plain_line(question.question)):
        reading = replace(reading, mention=_with_lesions(reading))
    fact = asked_fact(reading, off_topic, facts_of(question.type, question.unit, known))
    said = reading.fact_probability < GUESSED and fact == fact_in(question.question, MEASURED)
    if fact != reading.fact or said:
        reading, off_topic = replace(reading, fact=fact, fact_probability=max(reading.fact_probability, RULED)), 0.0
    limit = reading.threshold
    if limit and limit.attribute == "long_axis_mm" and not any(map(is_lesion, reading.mention.classes)):
        field = compared_by(question.question)  # "is the cord longer than 15 cm?"
        if field != "volume_ml":
            reading = replace(reading, threshold=replace(limit, attribute=field))
    unit = FACTS[reading.fact].unit
    claim = is_claim(question.question)
    if claim and reading.threshold and reading.fact in MEASURED and unit == reading.threshold.unit:
        reading = replace(reading, limit=reading.threshold, threshold=None)
    elif claim and unit == "%" and not reading.threshold:
        reading = replace(reading, limit=parse_per_cent(question.question))
    elif claim and reading.fact == "gap" and (near := parse_within(question.question)):
        reading = replace(reading, limit=near)
    elif claim and reading.fact == "gap" and says("touches", plain_line(question.question)):
        diagonal = float(np.linalg.norm(reading.scene.grid.spacing_mm))  # between the centres of neighbouring voxels
        reading = replace(reading, limit=Threshold("gap", "<=", diagonal, "mm"))
    if (mention := compared_kinds(reading)) is not None:
        reading = replace(reading, mention=mention)
    return replace(reading, selection=meant(reading)), off_topic


def _with_lesions(reading: Reading) -> Mention:
    """What is mentioned, with lesions where something abnormal is asked about that no name tells."""
    mention = reading.mention
    if mention.classes or mention.others or mention.lesions:
        return mention
    return find_mentions(f"{reading.question.question} lesion", scene_classes(reading.scene))
