"""A plan survives its JSON, and one that cannot be is one line."""

import json

import pytest

from seg_backbone.errors import CheckpointError
from seg_backbone.plan import Plan

PLAN = Plan(
    name="t",
    classes=("tumour", "larynx"),
    spacing_mm=(3.0, 3.0, 5.0),
    patch=(32, 48, 16),
    network_options={"features": [4, 8]},
    trained_on={"CT": ("tumour", "larynx"), "MR": ("tumour",)},
    minimum_ml={"tumour": 1.0},
    single=("larynx",),
)


def test_ids_follow_the_order_of_the_classes():
    assert PLAN.labels == {"tumour": 1, "larynx": 2}
    assert PLAN.with_(classes=("larynx", "tumour")).labels == {"larynx": 1, "tumour": 2}
    assert PLAN.classes == ("tumour", "larynx")


def test_json_roundtrip(tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    assert Plan.read(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": []},
        {"classes": ["a", "a"]},
        {"spacing_mm": [0, 1, 1]},
        {"spacing_mm": None},
        {"step": 0},
        {"trained_on": ["CT"]},
        {"colour": "blue"},
    ],
    ids=str,
)
def test_an_impossible_plan_is_one_line_that_names_the_file(tmp_path, changes):
    (tmp_path / "plan.json").write_text(json.dumps(json.loads(PLAN.to_json()) | changes))
    with pytest.raises(CheckpointError, match="plan.json: expected a plan.json") as caught:
        Plan.read(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "t"}'])
def test_a_file_that_is_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(CheckpointError):
        Plan.read(tmp_path / "plan.json")
    with pytest.raises(CheckpointError, match="missing"):
        Plan.read(tmp_path / "missing.json")
