"""Runtimes: each says what torch says, is made once, and is dropped where it drifts; ONNX leaves the house."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from seg_backbone import runtimes
from seg_backbone.checkpoint import save_model
from seg_backbone.errors import ConfigError
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter
from seg_backbone.runtimes import Runtimes, drift, openvino_runtime, require_runtime, torch_runtime

OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PATCH = (16, 16, 16)
PLAN = Plan("tiny", ("tumour",), patch=PATCH, network_options=OPTIONS, trained_on={"CT": ("tumour",)})
SCAN = (np.random.default_rng(0).integers(-1000, 900, (20, 18, 16)).astype(np.int16), np.diag([4.0, 4.0, 4.0, 1.0]))
needs_openvino = pytest.mark.skipif(
    not runtimes.has_package("openvino"), reason="the optional package openvino is missing"
)


def network_of(seed=0):
    torch.manual_seed(seed)
    return build_network("residual_unet", 2, 2, OPTIONS).eval()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache of converted models is a fresh folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "flare-vlm" / "openvino"


@pytest.fixture
def run_vlm(monkeypatch, capsys):
    """Run the command; its standard output."""

    def run(*arguments):
        from vlm.cli import main

        monkeypatch.setattr(sys, "argv", ["vlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        return capsys.readouterr().out

    return run


def test_drift_by_hand():
    ours = torch.tensor([[[3.0, 3, 0, 0], [0, 0, 1, 1]]])  # classes 0 0 1 1
    theirs = torch.tensor([[[3.0, 0, 0, 0], [0, 2, 1, 1]]])  # classes 0 1 1 1
    assert drift(ours, theirs) == {"dice": pytest.approx(2 * 1 / 3), "largest_difference": 3.0, "windows": 1}
    assert drift(ours, ours) == {"dice": 1.0, "largest_difference": 0.0, "windows": 1}
    assert drift(ours, torch.full_like(ours, torch.nan))["dice"] < 1


def test_mistakes(monkeypatch):
    with pytest.raises(ConfigError, match="onnx"):
        require_runtime("onnx", "cpu")
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flare-vlm\[openvino\]'"):
        Segmenter(network_of(), PLAN, "0", runtime="openvino")
    assert not runtimes.has_package("openvino")
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
    assert openvino_runtime(network_of(), 2, PATCH, None, tmp_path / "file")(torch.zeros(1, 2, *PATCH)).shape[1] == 2


@needs_openvino
def test_nothing_is_converted_under_a_cap_on_memory(home):
    capped = Segmenter(network_of(), PLAN, "0", runtime="openvino")(SCAN, "CT", max_ram_mb=1e6).report["runtime"]
    assert (capped["used"], home.exists()) == ("torch", False) and "run once without a cap" in capped["why"]
    openvino_runtime(network_of(), 2, PATCH)
    again = Segmenter(network_of(), PLAN, "0", runtime="openvino")(SCAN, "CT", max_ram_mb=1e6)
    assert again.report["runtime"]["used"] == "openvino"


@needs_openvino
def test_the_segmenter_tells_which_runtime_it_used():
    torch_mask = Segmenter(network_of(), PLAN, "0")(SCAN, "CT").mask.array
    segmenter = Segmenter(network_of(), PLAN, "0", runtime="openvino")
    found = segmenter(SCAN, "CT")
    assert found.report["runtime"]["used"] == "openvino"
    assert found.report["runtime"]["drift"]["openvino"]["dice"] > 0.99
    assert (found.mask.array == torch_mask).mean() > 0.99
    kept = segmenter(SCAN, "CT", keep_stages=(0,))
    assert (kept.report["runtime"]["used"], kept.report["runtime"]["why"]) == ("torch", "features come from torch")
    np.testing.assert_array_equal(kept.mask.array, torch_mask)


@needs_openvino
def test_auto_takes_openvino_where_it_pays(monkeypatch):
    """By hand: torch takes 0.1 s a window, openvino 0.04 s, 2 s to load and 3 s to convert."""
    torch.set_num_threads(1)

    def auto():
        made = Runtimes(network_of(), 2, PATCH, "auto", torch.device("cpu"))
        monkeypatch.setattr(runtimes, "TORCH_SPEED", made.cost.operations / 0.1)
        monkeypatch.setattr(runtimes, "OPENVINO_SPEED", made.cost.operations / 0.04)
        return made

    monkeypatch.setattr(runtimes, "LOAD_SECONDS", 2.0)
    monkeypatch.setattr(runtimes, "CONVERT_SECONDS", 3.0)
    assert auto().choose(False, False, windows=1000).why == "auto takes openvino in fast mode on a CPU"
    few = auto().choose(True, False, windows=80)  # 8.0 s against 3.2 + 5
    assert few.name == "torch"
    assert few.why.startswith("80 windows: about 8.0 s by torch, 5.2 s by openvino and 3.0 s to convert it, which")
    assert auto().choose(True, False, windows=90).name == "openvino"  # 9.0 s against 3.6 + 5; it is kept now
    few = auto().choose(True, False, windows=33)
    assert few.why == "33 windows: about 3.3 s by torch, 3.3 s by openvino"
    made = auto()
    assert made.choose(True, False, windows=35).name == "openvino"
    assert made.choose(True, False, windows=1).name == "openvino"  # it is there
    assert auto().choose(True, False).name == "openvino"  # nobody knows how many
    found = Segmenter(network_of(), PLAN, "0", runtime="auto")(SCAN, "CT", fast=True).report["runtime"]
    assert found["used"] == "torch" and found["why"].startswith("4 windows: about")


@pytest.mark.parametrize("asked", ["openvino", "compile"])
def test_a_runtime_that_drifts_is_dropped(monkeypatch, asked):
    network = network_of()
    monkeypatch.setattr(runtimes, "find_spec", lambda name: object())
    name = "compiled_runtime" if asked == "compile" else "openvino_runtime"
    monkeypatch.setattr(runtimes, name, lambda *_: lambda w: torch_runtime(network)(-w))
    segmenter = Segmenter(network, PLAN, "0", runtime=asked)
    expected = Segmenter(network, PLAN, "0")(SCAN, "CT").mask.array
    for _ in range(2):
        found = segmenter(SCAN, "CT")
        assert found.report["runtime"]["used"] == "torch"
        assert found.report["runtime"]["why"].startswith(f"{asked} drifts: Dice 0.")
        np.testing.assert_array_equal(found.mask.array, expected)


def test_torch_compile_is_given_the_network(monkeypatch):
    """That torch.compile keeps to the logits is its own promise, and half a minute to see."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.append(options) or function)
    found = Segmenter(network_of(), PLAN, "0", runtime="compile")(SCAN, "CT")
    assert given == [{"dynamic": False}]
    assert found.report["runtime"]["used"] == "compile"
    assert found.report["runtime"]["drift"]["compile"] == {"dice": 1.0, "largest_difference": 0.0, "windows": 1}


@needs_openvino
def test_signals_are_survived_beside_openvino(home):
    """A model that goes before a younger one leaves OpenVINO with a signal stack that is freed."""
    code = """if True:
        import signal
        import torch
        from seg_backbone.runtimes import openvino_runtime
        network = torch.nn.Conv3d(2, 3, 3, padding=1).eval()
        first, second = (openvino_runtime(network, 2, (16, 16, 16)) for _ in range(2))
        signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
        del first
        signal.raise_signal(signal.SIGUSR1)
        del second
        signal.raise_signal(signal.SIGUSR1)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\nhandled\n"), done.stderr


@needs_openvino
@pytest.mark.skipif(not runtimes.has_package("nncf"), reason="the optional package nncf is missing")
def test_int8_is_used_where_it_keeps_to_torch_and_dropped_where_not(monkeypatch, home):
    smooth = (np.linspace(-900, 900, 40 * 36 * 32).reshape(40, 36, 32).astype(np.int16), SCAN[1])
    monkeypatch.setattr(runtimes, "DRIFT_DICE", 0.0)  # of random weights, whose classes are close, no share is sure
    segmenter = Segmenter(network_of(), PLAN, "0", runtime="openvino-int8")
    used = segmenter(smooth, "CT").report["runtime"]
    assert set(used["drift"]) == {"openvino", "openvino-int8"}
    assert used["used"] == "openvino-int8" and used["why"] is None
    assert used["drift"]["openvino-int8"]["largest_difference"] > used["drift"]["openvino"]["largest_difference"]
    assert len([*home.glob("*.xml")]) == 2
    monkeypatch.setattr(runtimes, "DRIFT_DICE", 1.1)
    monkeypatch.setattr(runtimes, "_quantised", None)  # it was kept
    assert (
        Segmenter(network_of(), PLAN, "0", runtime="openvino-int8")(smooth, "CT").report["runtime"]["used"] == "torch"
    )
    segmenter.runtimes._made["openvino"] = runtimes.replace(
        segmenter.runtimes._made["openvino"], drift={"dice": 2.0, "windows": 1}
    )
    used = segmenter(smooth, "CT").report["runtime"]
    assert used["used"] == "openvino" and used["why"].startswith("openvino-int8 drifts: Dice 0.")


@pytest.mark.skipif(
    not all(map(runtimes.has_package, ("onnx", "onnxruntime", "onnxscript"))), reason="the extra onnx is missing"
)
def test_onnx_equals_torch_for_any_number_of_windows(run_vlm, tmp_path):
    """Through the command, on a model folder; the check against torch by ONNX Runtime itself."""
    import onnxruntime

    folder = save_model(network_of(), PLAN, tmp_path / "model")
    out = run_vlm("model", "export", folder, "-o", tmp_path / "deep" / "net.onnx")
    assert json.loads(out)["largest_difference_of_a_logit"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "deep" / "net.onnx", providers=["CPUExecutionProvider"])
    assert Plan(**json.loads(session.get_modelmeta().custom_metadata_map["plan"])).name == "tiny"
    for count in (1, 3):
        windows = torch.randn(count, 2, *PATCH, generator=torch.Generator().manual_seed(count))
        (logits,) = session.run(["logits"], {"windows": windows.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(logits), network_of()(windows), atol=1e-4, rtol=1e-4)


def test_onnx_without_its_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flare-vlm\[onnx\]'"):
        runtimes.export_onnx(network_of(), 2, PATCH, "{}", tmp_path / "net.onnx")
