"""Which classes a manifest says are drawn in a case."""

import json

import pytest

from eval.mask_files import find_manifest, read_annotated
from seg_backbone.errors import InputError, QuestionError


def test_manifest(tmp_path):
    ref = tmp_path / "Dataset1" / "labelsTr"
    ref.mkdir(parents=True)
    manifest = tmp_path / "manifest.jsonl"
    lines = [
        {"dataset": "Dataset1", "case": "a", "annotated": ["RightParotid"]},
        {"dataset": "Dataset2", "case": "a", "annotated": ["tumour"]},
        {"dataset": "Dataset1", "case": "b", "annotated": "see the paper"},
    ]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert find_manifest(ref) == manifest
    assert read_annotated(manifest, ref) == {"a": ["parotid_right"]}
    with pytest.raises(InputError, match="line 2"):
        read_annotated(manifest, tmp_path)
    manifest.write_text('{"case": "a"\n')
    with pytest.raises(QuestionError, match="line 1"):
        read_annotated(manifest, ref)
