"""Runtimes: OpenVINO says what torch says, is converted once, and is dropped where it drifts."""

import numpy as np
import pytest
import torch

from seg_backbone import runtimes
from seg_backbone.errors import ConfigError
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter
from seg_backbone.runtimes import drift, openvino_runtime, require_runtime, torch_runtime

OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PATCH = (16, 16, 16)
PLAN = Plan("tiny", ("tumour",), patch=PATCH, network_options=OPTIONS, trained_on={"CT": ("tumour",)})
SCAN = (np.random.default_rng(0).integers(-1000, 900, (20, 18, 16)).astype(np.int16), np.diag([4.0, 4.0, 4.0, 1.0]))
needs_openvino = pytest.mark.skipif(not runtimes.has_openvino(), reason="the optional package openvino is missing")


def network_of(seed=0):
    torch.manual_seed(seed)
    return build_network("residual_unet", 2, 2, OPTIONS).eval()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache of converted models is a fresh folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "flare-vlm" / "openvino"


def test_drift_by_hand():
    ours = torch.tensor([[[3.0, 3, 0, 0], [0, 0, 1, 1]]])  # classes 0 0 1 1
    theirs = torch.tensor([[[3.0, 0, 0, 0], [0, 2, 1, 1]]])  # classes 0 1 1 1
    assert drift(ours, theirs) == {"dice": pytest.approx(2 * 1 / 3), "largest_difference": 3.0}
    assert drift(ours, ours) == {"dice": 1.0, "largest_difference": 0.0}
    assert drift(ours, torch.full_like(ours, torch.nan))["dice"] < 1


def test_mistakes(monkeypatch):
    with pytest.raises(ConfigError, match="onnx"):
        require_runtime("onnx", "cpu")
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flare-vlm\[openvino\]'"):
        Segmenter(network_of(), PLAN, "0", runtime="openvino")
    assert not runtimes.has_openvino()
    monkeypatch.setattr(runtimes, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="--device cpu"):
        require_runtime("openvino", "cuda")


@needs_openvino
def test_openvino_equals_torch_and_is_kept(home, monkeypatch):
    import openvino

    windows = torch.randn(3, 2, *PATCH, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = torch_runtime(network_of())(windows)
    torch.testing.assert_close(openvino_runtime(network_of(), 2, PATCH)(windows), expected, atol=1e-3, rtol=1e-3)
    assert sorted(path.suffix for path in home.iterdir()) == [".bin", ".xml"]
    openvino_runtime(network_of(seed=1), 2, PATCH)
    assert len([*home.iterdir()]) == 4  # other weights, another file
    monkeypatch.setattr(openvino, "convert_model", None)  # from here on nothing is converted
    torch.testing.assert_close(openvino_runtime(network_of(), 2, PATCH)(windows), expected, atol=1e-3, rtol=1e-3)


@needs_openvino
def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert openvino_runtime(network_of(), 2, PATCH, tmp_path / "file")(torch.zeros(1, 2, *PATCH)).shape[1] == 2


@needs_openvino
def test_the_segmenter_tells_which_runtime_it_used():
    torch_mask = Segmenter(network_of(), PLAN, "0")(SCAN, "CT").mask.array
    segmenter = Segmenter(network_of(), PLAN, "0", runtime="openvino")
    found = segmenter(SCAN, "CT")
    assert found.report["runtime"]["used"] == "openvino"
    assert found.report["runtime"]["drift"]["dice"] > 0.99
    assert (found.mask.array == torch_mask).mean() > 0.99
    kept = segmenter(SCAN, "CT", keep_stages=(0,))
    assert (kept.report["runtime"]["used"], kept.report["runtime"]["why"]) == ("torch", "features come from torch")
    np.testing.assert_array_equal(kept.mask.array, torch_mask)
    auto = Segmenter(network_of(), PLAN, "0", runtime="auto")
    assert [auto(SCAN, "CT", fast=fast).report["runtime"]["used"] for fast in (False, True)] == ["torch", "openvino"]


def test_a_runtime_that_drifts_is_dropped(monkeypatch):
    network = network_of()
    monkeypatch.setattr(runtimes, "find_spec", lambda name: object())
    monkeypatch.setattr("seg_backbone.predict.openvino_runtime", lambda *_: lambda w: torch_runtime(network)(-w))
    segmenter = Segmenter(network, PLAN, "0", runtime="openvino")
    expected = Segmenter(network, PLAN, "0")(SCAN, "CT").mask.array
    for _ in range(2):
        found = segmenter(SCAN, "CT")
        assert found.report["runtime"]["used"] == "torch"
        assert "drifts" in found.report["runtime"]["why"]
        np.testing.assert_array_equal(found.mask.array, expected)
