"""An abdomen of several lesions and broken organs, and how a question about it is read by its words alone.

The reading given is that of a network without a clue: every instance with one probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from phantoms import features_of

from seg_backbone.geometry import Grid
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask, Volume
from vlm.data.threshold import parse_threshold
from vlm.facts import NAMES
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.reading import Reading
from vlm.infer.rereading import reread
from vlm.scene import Scene, build_scene, scene_classes
from vlm.schema import Question

BLOCKS = [  # label, index box of 2 mm voxels, HU; a later block lies over an earlier one
    ("liver", np.s_[34:54, 10:34, 16:36], 60),
    ("spleen", np.s_[4:12, 20:32, 18:30], 50),
    ("kidney_left", np.s_[8:16, 6:14, 8:20], 30),
    ("kidney_right", np.s_[40:48, 2:9, 4:14], 34),
    ("pancreas", np.s_[20:26, 20:24, 18:22], 40),
    ("pancreas", np.s_[27:30, 20:24, 18:22], 46),
    ("vertebrae_L1", np.s_[26:32, 4:10, 20:26], 200),
    ("vertebrae_L2", np.s_[26:32, 4:10, 12:18], 210),
    ("vertebrae_T12", np.s_[26:32, 4:10, 28:34], 190),
    ("liver_tumor", np.s_[36:44, 14:22, 20:28], 40),
    ("liver_tumor", np.s_[48:52, 14:18, 20:24], 44),
    ("liver_tumor", np.s_[48:50, 26:28, 30:32], 80),
    ("kidney_tumor", np.s_[10:13, 8:11, 10:13], 35),
    ("kidney_cyst", np.s_[42:44, 4:6, 6:8], 5),
]
LABELS = {name: n + 1 for n, name in enumerate(dict.fromkeys(name for name, _, _ in BLOCKS))}
ML = 0.008  # a voxel


def build_abdomen() -> Scene:
    grid = Grid((60, 40, 40), np.array([[2.0, 0, 0, -60], [0, 2, 0, -40], [0, 0, 2, -40], [0, 0, 0, 1]]))
    ids, array = np.zeros(grid.shape, np.uint8), np.full(grid.shape, -1000, np.int16)
    array[2:58, 1:38] = 0
    for name, place, value in BLOCKS:
        ids[place], array[place] = LABELS[name], value
    volume = Volume(array, grid, "CT", "abdomen")
    instances = find_instances(Mask(array=ids, grid=grid, labels=LABELS), volume)
    return build_scene(volume, instances, tuple(LABELS), (), features_of(grid))


def read(scene: Scene, text: str, fact: str, **how: Any) -> Reading:
    mention = find_mentions(text, scene_classes(scene))
    selection = np.full(len(scene.instances), 0.1)
    question = Question("q", "scan", text, **how)
    reading = Reading(question, scene, mention, fact, 0.9, selection, parse_threshold(text))
    return reread(reading, 0.0, NAMES)[0]


def answer(scene: Scene, text: str, fact: str, **how: Any) -> dict[str, Any]:
    return decode(read(scene, text, fact, **how))
