"""nnU-Net's models: imported, they draw what nnU-Net draws; what is broken or not supported is one line."""

import itertools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from seg_backbone.checkpoint import load_model
from seg_backbone.errors import CheckpointError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.nets import build_network
from seg_backbone.nnunet import import_nnunet, model_folder, read_checkpoint
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter
from seg_backbone.volume import Volume
from vlm.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = Path(__file__).parents[1] / "nnunet_models"  # made by nnunet_fixture.py
REAL = sorted(path.name for path in MODELS.iterdir())
run = CliRunner()


def dice(ours, theirs):
    """Of every class that either has, the lowest."""
    values = set(np.unique(ours)) | set(np.unique(theirs))
    return min(
        2 * int(((ours == v) & (theirs == v)).sum()) / int((ours == v).sum() + (theirs == v).sum())
        for v in values - {0}
    )


@pytest.fixture(scope="module", params=REAL)
def real(request, tmp_path_factory):
    """A model that nnU-Net trained, imported; its scan; nnU-Net's mask of it."""
    home = MODELS / request.param
    folder = import_nnunet(home, tmp_path_factory.mktemp("models") / request.param)
    mask = nib.load(next((home / "predicted").glob("*.nii.gz")))
    return folder, next((home / "imagesTs").glob("*_0000.nii.gz")), np.asarray(mask.dataobj)


def test_accurate_is_what_nnunet_draws(real):
    folder, scan, theirs = real
    result = Segmenter.load(folder, "cpu")(scan)
    assert set(np.unique(theirs)) > {0}
    assert dice(result.mask.array, theirs) >= 0.999
    assert result.report["modality_from"] == "model"
    assert result.report["settings"]["mirrored"] == [0, 1, 2]


def test_cubic_sees_what_it_sees_and_mirrors_nothing(real, tmp_path):
    folder, scan, _ = real
    shutil.copytree(folder, tmp_path / "cubic")
    file = tmp_path / "cubic" / "plan.json"
    file.write_text(Plan.read(file).with_(resampling="cubic").to_json())
    cubic = Segmenter.load(tmp_path / "cubic", "cpu")(scan)
    assert cubic.report["settings"]["mirrored"] == []
    assert dice(cubic.mask.array, Segmenter.load(folder, "cpu")(scan, mirror=False).mask.array) >= 0.99


def test_fast_is_near_to_it(real):
    """Without flips; the networks are hardly trained, so that costs more here than elsewhere."""
    folder, scan, theirs = real
    segmenter = Segmenter.load(folder, "cpu")
    fast = segmenter(scan, fast=True)
    assert dice(fast.mask.array > 0, theirs > 0) > 0.9
    assert fast.report["settings"]["mirrored"] == []
    assert dice(fast.mask.array, segmenter(scan, mirror=False).mask.array) >= 0.995  # of the rest nothing is left out
    capped = segmenter(scan, fast=True, max_ram_mb=1e6)
    assert (capped.mask.array == fast.mask.array).all()
    assert capped.report["budget"]["predicted"] is not None


def test_features_come_with_it(real):
    folder, scan, _ = real
    segmenter = Segmenter.load(folder, "cpu")
    features = segmenter(scan, keep_stages=(1,)).features
    assert features.vectors[1].shape == (len(features.positions_mm[1]), 8 * segmenter.plan.members)


@pytest.mark.parametrize("real", REAL[1:], indirect=True)
def test_openvino_draws_the_same(real):
    pytest.importorskip("openvino")
    folder, scan, _ = real
    ours = Segmenter.load(folder, "cpu")(scan, fast=True)
    theirs = Segmenter.load(folder, "cpu", runtime="openvino")(scan, fast=True)
    assert theirs.report["runtime"]["used"] == "openvino"
    assert dice(ours.mask.array, theirs.mask.array) > 0.99


@pytest.mark.parametrize("real", REAL[1:], indirect=True)
def test_through_the_command_line(real, tmp_path, monkeypatch):
    _, scan, theirs = real
    home = MODELS / scan.parents[1].name
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    result = run.invoke(app, ["model", "import", f"nnunet:{home}", "-o", "mine"])
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == tmp_path / "share" / "flare-vlm" / "models" / "mine"
    listed = run.invoke(app, ["model", "list"])
    assert "mine  segmentation" in listed.stdout
    # a folder: further channels of a scan are no scans of their own
    out = tmp_path / "masks"
    result = run.invoke(app, ["segment", str(scan.parent), "-o", str(out), "--model", "mine", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["case7.nii.gz", "labels.json"]
    assert dice(np.asarray(nib.load(out / "case7.nii.gz").dataobj), theirs) >= 0.999
    again = run.invoke(app, ["model", "import", f"nnunet:{home}", "-o", "mine"])
    assert again.exit_code != 0


@pytest.mark.parametrize("recipe", REAL)
def test_live_against_nnunet(recipe, tmp_path):
    """The prediction that is stored is what nnU-Net says today; and another scan's."""
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet, in an environment of its own)")
    from nnunet_fixture import RECIPES, predict, write

    home = MODELS / recipe
    write(next(one for one in RECIPES if one.name == recipe), tmp_path, range(7, 9), "Ts")
    predict(model_folder(home), tmp_path, tmp_path / "predicted")
    segmenter = Segmenter.load(import_nnunet(home, tmp_path / "model"), "cpu")
    for mask in (tmp_path / "predicted").glob("*.nii.gz"):
        theirs = np.asarray(nib.load(mask).dataobj)
        ours = segmenter(tmp_path / "imagesTs" / mask.name.replace(".nii.gz", "_0000.nii.gz")).mask.array
        assert dice(ours, theirs) >= 0.999


# ---- folders made here: as nnU-Net writes them, with weights that were never trained

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 5, 6],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": KERNELS,
        "strides": STRIDES,
        "n_conv_per_stage": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
}
FULLRES = {
    "patch_size": [6, 8, 16],
    "spacing": [3.0, 1.0, 2.0],
    "normalization_schemes": ["CTNormalization"],
    "use_mask_for_norm": [False],
    "architecture": ARCHITECTURE,
}
VALUES = {"mean": 50.0, "std": 20.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}


def trained(**changes):
    """A network as nnU-Net has it: its own axes, and every name under which it registers a weight."""
    options = {"features": [4, 5, 6], "convolutions": [1, 2, 1], "strides": STRIDES, "kernels": KERNELS}
    torch.manual_seed(0)
    return build_network("plain_unet", 1, 3, options | {"decoder": [1, 2]} | changes).eval()


def checkpoint(network, **changes):
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_start_timestamps": [1.0]},
        "_best_ema": np.float64(0.5),
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2),
    } | changes


def write_model(folder, forward=(0, 1, 2), plans=None, dataset=None, folds=(0,), **changes):
    """An nnU-Net model folder; `changes` go into the configuration."""
    folder.mkdir(parents=True)
    whole = {
        "dataset_name": "Dataset001_Test",
        "transpose_forward": list(forward),
        "image_reader_writer": "SimpleITKIO",
        "configurations": {"3d_fullres": FULLRES | changes},
        "foreground_intensity_properties_per_channel": {"0": VALUES},
    } | (plans or {})
    (folder / "plans.json").write_text(json.dumps(whole))
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}} | (dataset or {})
    (folder / "dataset.json").write_text(json.dumps(described))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint(trained()), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


@pytest.mark.parametrize("forward", list(itertools.permutations(range(3))))
def test_the_axes_are_turned_back(tmp_path, forward):
    network, plan, _ = load_model(import_nnunet(write_model(tmp_path / "theirs", forward), tmp_path / "ours"))
    scan = torch.randn(1, 1, 16, 24, 32)  # (i, j, k) of a file
    theirs = scan.permute(0, 1, 4, 3, 2).permute(0, 1, *(2 + axis for axis in forward))
    with torch.inference_mode():
        expected = trained()(theirs)
        # what nnU-Net does to a mask on its way back
        expected = expected.permute(0, 1, *(2 + axis for axis in np.argsort(forward))).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(network(scan), expected, atol=1e-4, rtol=1e-4)
    back = np.array(FULLRES["spacing"])[np.argsort(forward)][::-1]
    assert plan.spacing_mm == tuple(back)
    mirrored = {(0, 1, 2)[::-1][forward[axis]] for axis in (0, 2)}
    assert set(plan.mirror_axes) == mirrored


def test_the_plan_is_nnunets(tmp_path):
    folder = import_nnunet(
        write_model(tmp_path / "D" / "nnUNetTrainer__nnUNetPlans__3d_fullres").parent, tmp_path / "o"
    )
    plan = load_model(folder)[1]
    assert plan.classes == ("liver", "tumour")
    assert (plan.orientation, plan.resampling, plan.crop_nonzero) == ("file", "nnunet", True)
    assert plan.trained_on == {"CT": ("liver", "tumour")}
    assert (plan.channels[0].low, plan.channels[0].high, plan.channels[0].std) == (-100, 200, 20)
    assert plan.patch == (16, 8, 6)
    card = (folder / "README.md").read_text()
    assert "nnUNetTrainer" in card and "0000 CT (ct)" in card
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "plan.json", "weights.safetensors"]


def test_folds_are_an_ensemble(tmp_path):
    source = write_model(tmp_path / "theirs", folds=(0, 3, "all"))
    other = trained()
    with torch.no_grad():
        other.decoder.seg_layers[-1].bias += 1
    torch.save(checkpoint(other), source / "fold_3" / "checkpoint_final.pth")
    scan = torch.randn(1, 1, 16, 8, 12)
    logits = {}
    for folds in ((), ("0",), ("3",)):
        network, plan, _ = load_model(import_nnunet(source, tmp_path / f"ours{len(logits)}", folds))
        assert plan.members == (1 if folds else 2)
        with torch.inference_mode():
            logits[folds] = network(scan)
            torch.testing.assert_close(network.decoder(network.encoder(scan)), logits[folds])
    torch.testing.assert_close(logits[()], (logits[("0",)] + logits[("3",)]) / 2)
    with pytest.raises(CheckpointError, match="fold_7.*folds with a checkpoint: 0, 3, all"):
        import_nnunet(source, tmp_path / "more", ("0", "7"))


def test_plans_of_before_2_4(tmp_path):
    old = {key: value for key, value in FULLRES.items() if key != "architecture"} | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 2],
        "pool_op_kernel_sizes": STRIDES,
        "conv_kernel_sizes": KERNELS,
    }
    source = write_model(tmp_path / "theirs", plans={"configurations": {"3d_fullres": old}})
    network = trained(features=[4, 6, 6])
    torch.save(checkpoint(network), source / "fold_0" / "checkpoint_final.pth")
    assert load_model(import_nnunet(source, tmp_path / "ours"))[1].network_options["features"] == [4, 6, 6]


def test_what_a_configuration_inherits(tmp_path):
    configurations = {"3d_fullres": FULLRES | {"spacing": [9, 9, 9]}, "mine": {"inherits_from": "3d_fullres"}}
    configurations["mine"]["patch_size"] = [12, 16, 16]
    source = write_model(tmp_path / "theirs", plans={"configurations": configurations})
    init = {"configuration": "mine", "fold": 0}
    torch.save(checkpoint(trained(), init_args=init), source / "fold_0" / "checkpoint_final.pth")
    plan = load_model(import_nnunet(source, tmp_path / "ours"))[1]
    assert plan.spacing_mm == (9, 9, 9) and plan.patch == (16, 16, 12)


def test_a_network_of_regions_paints(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}
    source = write_model(tmp_path / "theirs", dataset={"labels": labels, "regions_class_order": [1, 2, 3]})
    network = trained()
    with torch.no_grad():  # every output is one number everywhere
        network.decoder.seg_layers[-1].weight.zero_()
        network.decoder.seg_layers[-1].bias[:] = torch.tensor([1.0, 2.0, -1.0])
    torch.save(checkpoint(network), source / "fold_0" / "checkpoint_final.pth")
    segmenter = Segmenter.load(import_nnunet(source, tmp_path / "ours"), "cpu")
    assert segmenter.plan.classes == ("whole_rest", "core_rest", "rim")
    array = np.random.default_rng(0).integers(-50, 150, (20, 12, 10)).astype(np.int16)
    array[0] = array[:, :2] = 0  # outside of the crop
    volume = Volume(array, Grid(array.shape, np.diag([2.0, 1.0, 3.0, 1.0])), "CT")
    for fast in (False, True):
        mask = segmenter(volume, fast=fast).mask.array
        assert (mask[1:, 2:] == 2).all()
        assert not mask[0].any() and not mask[:, :2].any()


class Harmful:
    def __reduce__(self):
        return (print, ("this must not be printed",))


def harm(folder):
    torch.save(checkpoint(trained(), logging=Harmful()), folder / "fold_0" / "checkpoint_final.pth")


def cut(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:2000])


def other_weights(folder):
    torch.save(checkpoint(trained(features=[4, 5, 7])), folder / "fold_0" / "checkpoint_final.pth")


def no_weights(folder):
    torch.save({"epoch": 3}, folder / "fold_0" / "checkpoint_final.pth")


def nan_weights(folder):
    network = trained()
    with torch.no_grad():
        network.decoder.seg_layers[-1].bias[1] = torch.nan
    torch.save(checkpoint(network), folder / "fold_0" / "checkpoint_final.pth")


def a_fourth_axis(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(checkpoint(trained(), inference_allowed_mirroring_axes=(0, 3)), path)


def text(folder):
    (folder / "fold_0" / "checkpoint_final.pth").write_text("not a checkpoint")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (harm, "checkpoint_final.pth: expected a checkpoint of tensors and numbers"),
        (cut, "checkpoint_final.pth: expected an nnU-Net v2 checkpoint"),
        (text, "checkpoint_final.pth: expected"),
        (no_weights, "KeyError: 'network_weights'"),
        (nan_weights, "expected finite weights, found NaN or infinity in 1 layers, the first .*bias"),
        (a_fourth_axis, r"inference_allowed_mirroring_axes are \(0, 3\)"),
        (other_weights, "layers missing or of another shape"),
        (lambda folder: shutil.rmtree(folder / "fold_0"), "expected fold_0/checkpoint_final.pth"),
        (lambda folder: (folder / "dataset.json").unlink(), "dataset.json: expected a JSON file.*no such file"),
        (lambda folder: (folder / "plans.json").unlink(), "no plans.json"),
        (lambda folder: (folder / "plans.json").write_text("{"), "plans.json: expected a JSON file"),
        (lambda folder: (folder / "plans.json").write_text("{}"), "plans.json: expected a plans.json of nnU-Net v2"),
        (lambda folder: (folder / "plans.json").write_text("[]"), "expected a JSON object, found list"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_broken_folders(tmp_path, capfd, spoil, words):
    folder = write_model(tmp_path / "theirs")
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_nnunet(folder, tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()
    assert "must not be printed" not in capfd.readouterr().out


def changed(**options):
    return {"architecture": ARCHITECTURE | {"arch_kwargs": ARCHITECTURE["arch_kwargs"] | options}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade after 3d_lowres"),
        ({"patch_size": [8, 8], "spacing": [1, 1]}, "3d_fullres, which is 2D"),
        ({"architecture": ARCHITECTURE | {"network_class_name": "x.PrimusM"}}, "a network among.*found x.PrimusM"),
        (changed(dropout_op="torch.nn.Dropout3d"), "dropout_op None, found Dropout3d"),
        (changed(norm_op="torch.nn.BatchNorm3d"), "norm_op InstanceNorm3d, found BatchNorm3d"),
        (changed(nonlin_kwargs={"negative_slope": 0.2}), "nnU-Net's norm and nonlinearity"),
        ({"normalization_schemes": ["Mine"]}, "normalisation among.*found Mine"),
        ({"normalization_schemes": []}, "a normalisation for 1 channels, found 0"),
        ({"preprocessor_name": "Mine"}, "the DefaultPreprocessor, found Mine"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet .* for data"),
        ({"patch_size": [6, 8, 15]}, r"divisible by the strides' products \[4, 4, 2\], found \[15, 8, 6\]"),
        ({"spacing": ["a", 1, 1]}, "a plans.json of nnU-Net v2, found ValueError"),
    ],
)
def test_what_is_not_supported(tmp_path, changes, words):
    folder = write_model(tmp_path / "theirs", **changes)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_nnunet(folder, tmp_path / "ours")
    assert "\n" not in str(caught.value)


def test_a_folder_with_several_models_lists_them(tmp_path):
    for name in ("a", "b"):
        write_model(tmp_path / "D" / name)
    with pytest.raises(CheckpointError, match="2 of them inside: a, b"):
        import_nnunet(tmp_path / "D", tmp_path / "ours")
    with pytest.raises(CheckpointError, match="new or empty"):
        import_nnunet(tmp_path / "D" / "a", tmp_path / "D" / "b")


def test_it_is_not_a_model_folder_of_ours_and_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match="vlm model import nnunet:"):
        load_model(write_model(tmp_path / "theirs"))


def test_a_missing_channel(tmp_path):
    source = write_model(
        tmp_path / "theirs",
        dataset={"channel_names": {"0": "T1", "1": "T2"}},
        normalization_schemes=["ZScoreNormalization"] * 2,
        use_mask_for_norm=[True, False],
    )
    options = {"features": [4, 5, 6], "convolutions": [1, 2, 1], "strides": STRIDES, "kernels": KERNELS}
    network = build_network("plain_unet", 2, 3, options | {"decoder": [1, 2]})
    torch.save(checkpoint(network), source / "fold_0" / "checkpoint_final.pth")
    segmenter = Segmenter.load(import_nnunet(source, tmp_path / "ours"), "cpu")
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype(np.int16), np.eye(4))
    for name, words in (("a_0000.nii.gz", "no a_0001.nii.gz"), ("b.nii.gz", "found one file")):
        nib.save(image, tmp_path / name)
        with pytest.raises(ScanError, match=f"2 channels.*{words}"):
            segmenter(tmp_path / name)
    nib.save(image, tmp_path / "a_0001.nii.gz")
    assert segmenter(tmp_path / "a_0000.nii.gz").report["modality"] == "MR"


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_any_numpy_are_read(tmp_path, core):
    """Checkpoints written under numpy 1 name numpy.core, later ones numpy._core."""
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint(trained()), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\n" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.%b.multiarray\n" % core.encode()))
    assert read_checkpoint(path).mirror_axes == (0, 2)
