"""A tiny language model built on the spot, and phantoms with known answers; what several test files share."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from seg_backbone.geometry import Grid
from seg_backbone.lesions import find_instances
from seg_backbone.predict import Features
from seg_backbone.resample import resample_array, resample_labels
from seg_backbone.volume import Mask, Volume
from vlm.encoders.backbone import INSTANCE_STAGE, VISUAL_STAGE
from vlm.scene import Scene, build_scene

SCANS = Path(__file__).parents[1] / "examples" / "scans"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_llm(hidden_size: int = 32):  # type: ignore[no-untyped-def]
    """A random two-layer Llama and a character tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = [chr(n) for n in range(32, 127)] + ["\n"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", "</s>", *characters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def phantom(affine: np.ndarray | None = None) -> tuple[Volume, Mask]:
    """A CT of 40 x 40 x 30 voxels of 2 mm: a body, three tumours (cubes of 4, 6, 8 voxels) and two parotids."""
    if affine is None:
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = -40, -40, -30
    grid = Grid((40, 40, 30), affine)
    array = np.full(grid.shape, -1000, dtype=np.int16)
    array[3:37, 3:37] = 40
    ids = np.zeros(grid.shape, dtype=np.uint8)
    for size, start in ((8, (6, 6, 4)), (6, (26, 8, 6)), (4, (24, 24, 20))):
        ids[tuple(slice(s, s + size) for s in start)] = 1
    ids[30:34, 28:32, 10:14] = 2
    ids[6:10, 28:33, 10:14] = 3
    array[ids == 1] = 80
    return Volume(array, grid, "CT", "phantom"), Mask(array=ids, grid=grid, labels=LABELS)


LABELS = {"tumour": 1, "parotid_right": 2, "parotid_left": 3}


def features_of(grid: Grid, channels: tuple[int, int] = (6, 5)) -> Features:
    """Features whose values are functions of the place in the world, so that they turn with the scan."""
    low, high = grid.extent_mm()
    vectors, positions = {}, {}
    for stage, step, width in ((VISUAL_STAGE, 16.0, channels[0]), (INSTANCE_STAGE, 8.0, channels[1])):
        # a little off the middle, so that no point lies between two voxels
        axes = [np.arange(a + step / 2 + 0.3, b, step) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        waves = np.arange(1, width + 1)[None] / 40
        vectors[stage] = np.sin(points.sum(1, keepdims=True) * waves).astype(np.float32)
        positions[stage] = points.astype(np.float32)
    return Features(vectors, positions)


# One patient in other files: each takes a scan with its mask and gives both as they might be stored elsewhere.


def turned(volume: Volume, mask: Mask, codes: str = "PSL") -> tuple[Volume, Mask]:
    """The array axes stored as `codes`."""
    stored = nib.io_orientation(volume.grid.affine)
    transform = nib.orientations.ornt_transform(stored, nib.orientations.axcodes2ornt(codes))
    array, ids = (np.ascontiguousarray(nib.apply_orientation(a, transform)) for a in (volume.array, mask.array))
    affine = volume.grid.affine @ nib.orientations.inv_ornt_aff(transform, volume.grid.shape)
    grid = Grid(array.shape, affine)
    return Volume(array, grid, volume.modality, volume.source), Mask(ids, grid, mask.labels)


def padded(
    volume: Volume, mask: Mask, margins: tuple[tuple[int, int], ...] = ((5, 0), (0, 9), (4, 2))
) -> tuple[Volume, Mask]:
    """With so many voxels of air before and after along each array axis."""
    array = np.pad(volume.array, margins, constant_values=-1000 if volume.modality == "CT" else 0)
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.voxel_to_world(-np.array([before for before, _ in margins]))
    grid = Grid(array.shape, affine)
    return Volume(array, grid, volume.modality, volume.source), Mask(np.pad(mask.array, margins), grid, mask.labels)


def resampled(
    volume: Volume, mask: Mask, spacing_mm: tuple[float, float, float] = (2.5, 2.5, 2.5)
) -> tuple[Volume, Mask]:
    """At another spacing."""
    grid = volume.grid.with_spacing(spacing_mm)
    array, ids = resample_array(volume.array, grid.shape), resample_labels(mask.array, grid.shape)
    return Volume(array, grid, volume.modality, volume.source), Mask(ids, grid, mask.labels)


def phantom_scene(volume: Volume, mask: Mask, channels: tuple[int, int] = (6, 5)) -> Scene:
    """The scene of a phantom."""
    instances = find_instances(mask, volume)
    classes = (*mask.labels, "larynx")
    return build_scene(volume, instances, classes, (), features_of(volume.grid, channels))


def tiny_models(folder: Path, llm: Path) -> Path:
    """An untrained segmentation and vision-language model in `folder`; returns the latter's folder."""
    import torch

    from seg_backbone.checkpoint import save_model
    from seg_backbone.nets import build_network
    from seg_backbone.plan import Plan
    from vlm.llm import load_llm
    from vlm.model import VisionLanguageModel, VlmConfig

    torch.manual_seed(0)
    options = {"features": (4, 4, 5, 6, 6), "blocks": (1,) * 5, "strides": (1, 2, 2, 2, 2)}
    plan = Plan(
        name="tiny",
        classes=("tumour", "parotid_right", "parotid_left"),
        spacing_mm=(4.0, 4.0, 4.0),
        patch=(32, 32, 32),
        network_options=options,
        trained_on={"CT": ("tumour", "parotid_right", "parotid_left"), "MR": ("tumour",)},
    )
    save_model(build_network("residual_unet", 2, 4, options), plan, folder / "segmentation")
    config = VlmConfig(
        llm=str(llm),
        segmentation=str(folder / "segmentation"),
        visual_channels=6,
        instance_channels=5,
        regression_scale={"fat_percent": (20.0, 5.0)},
        name="tiny",
    )
    return VisionLanguageModel(config, *load_llm(str(llm))).save(folder / "vlm")
