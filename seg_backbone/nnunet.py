"""Import of models trained by nnU-Net v2: a trained-model folder -> a model folder of ours.

Enter dataset.json, plans.json and fold_*/checkpoint_*.pth; leave weights.safetensors, plan.json and a model card. No
code of the checkpoint is run: torch's `weights_only` reader, with numpy's scalars allowed beside tensors.

nnU-Net's arrays are (slowest axis first) the file's reversed, then turned by `transpose_forward`. Here weights, patch
and spacing are turned back once, so that an imported network sees scans as their files have them.
"""

from __future__ import annotations

import json
import math
import pickle
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seg_backbone.errors import CheckpointError, ConfigError, InputError
from seg_backbone.labels import LabelFile, read_label_file
from seg_backbone.plan import Channel, Plan

if TYPE_CHECKING:
    import torch

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
NETWORKS = {"PlainConvUNet": "plain_unet", "ResidualEncoderUNet": "resenc_unet"}
SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
    "NoNormalization": "none",
}
RESAMPLING = "resample_data_or_seg_to_shape"
# what the builders of nets/dynamic_unet.py take for granted; absent is fine
FIXED: dict[str, Any] = {
    "conv_op": "Conv3d",
    "norm_op": "InstanceNorm3d",
    "nonlin": "LeakyReLU",
    "dropout_op": None,
    "conv_bias": True,
    "nonlin_first": False,
    "bottleneck_channels": None,
    "stem_channels": None,
}


@dataclass(frozen=True)
class Trained:
    """What one checkpoint says. mirror_axes: of nnU-Net's axes, those that its predictions are mirrored along."""

    weights: dict[str, torch.Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def import_nnunet(source: str | Path, out: str | Path, folds: tuple[str, ...] = ()) -> Path:
    """Convert a trained-model folder (TRAINER__PLANS__CONFIGURATION, or one with a single such folder inside) to `out`.

    folds: those to import ("0", "all"); by default every numbered fold that is there, as nnU-Net predicts. Several make
    an ensemble. Returns `out`. Raises CheckpointError for what is missing, broken or not supported: other networks than
    the plain and residual-encoder U-Nets, 2d, cascades, other preprocessing.
    """
    from seg_backbone.checkpoint import PLAN, own_weights, save_model
    from seg_backbone.io import replacing
    from seg_backbone.nets import build_network
    from seg_backbone.nets.wrappers import Ensemble

    folder, out = model_folder(Path(source)), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(out, "a folder that is new or empty", "something in it", "choose another -o")
    plans, dataset = _json(folder / "plans.json"), _json(folder / "dataset.json")
    found = fold_files(folder, folds)
    trained = {fold: read_checkpoint(path) for fold, path in found.items()}
    first = next(iter(trained.values()))
    plan = _plan(folder, plans, dataset, first, len(trained))
    order = _order(folder / "plans.json", plans)
    members = []
    for fold, one in trained.items():
        try:
            network = build_network(plan.network, plan.inputs, plan.outputs, plan.network_options).eval()
        except ConfigError as error:
            raise CheckpointError(folder / "plans.json", error.expected, error.found, "copy the folder whole") from None
        wanted = {name: tuple(value.shape) for name, value in own_weights(network).items()}
        turned = {name: _turned(one.weights[name], order) for name in wanted if name in one.weights}
        if {name: tuple(value.shape) for name, value in turned.items()} != wanted:
            differ = sorted(name for name in wanted if name not in turned or tuple(turned[name].shape) != wanted[name])
            what = f"{len(differ)} layers missing or of another shape, the first {differ[0]}"
            todo = f"{one.trainer} may build its own network, which is not supported"
            raise CheckpointError(found[fold], f"the weights of the {plan.network} in plans.json", what, todo)
        broken = [name for name, value in turned.items() if not value.isfinite().all()]
        if broken:
            what = f"NaN or infinity in {len(broken)} layers, the first {broken[0]}"
            raise CheckpointError(found[fold], "finite weights", what, "its training failed: import another fold")
        network.load_state_dict(turned, strict=False)
        members.append(network)
    network = members[0] if len(members) == 1 else Ensemble(members)
    save_model(network, plan, out)
    assert (out / PLAN).is_file()
    with replacing(out / "README.md") as temporary:
        temporary.write_text(_card(folder, plan, first, list(found)), encoding="utf-8")
    return out


def model_folder(folder: Path) -> Path:
    """The trained-model folder itself, or the only one inside. Raises CheckpointError."""
    if (folder / "plans.json").is_file():
        return folder
    expected = "an nnU-Net v2 model folder (dataset.json, plans.json, fold_0/checkpoint_final.pth)"
    if not folder.is_dir():
        raise CheckpointError(folder, expected, "no such folder", "check the path")
    inside = sorted(path.parent for path in folder.glob("*/plans.json"))
    if len(inside) != 1:
        found = (
            f"{len(inside)} of them inside: {', '.join(path.name for path in inside)}" if inside else "no plans.json"
        )
        raise CheckpointError(folder, expected, found, "name the folder TRAINER__PLANS__CONFIGURATION")
    return inside[0]


def fold_files(folder: Path, folds: tuple[str, ...] = ()) -> dict[str, Path]:
    """Fold -> its checkpoint, the final one before the best one. Raises CheckpointError where there is none."""
    there = {
        path.name.removeprefix("fold_"): next((path / name for name in CHECKPOINTS if (path / name).is_file()), None)
        for path in sorted(folder.glob("fold_*"))
    }
    numbered = [fold for fold in there if fold.isdigit() and there[fold]]
    chosen = list(folds) or numbered or [fold for fold in there if there[fold]]
    found = {fold: path for fold in chosen if (path := there.get(fold)) is not None}
    if not found or len(found) < len(chosen):
        missing = ", ".join(fold for fold in chosen if fold not in found) or "any fold"
        have = ", ".join(fold for fold in there if there[fold]) or "none"
        expected = f"fold_{missing}/{CHECKPOINTS[0]}" if chosen else f"fold_0/{CHECKPOINTS[0]}"
        raise CheckpointError(folder, expected, f"folds with a checkpoint: {have}", "copy the folder whole")
    return found


def read_checkpoint(path: Path) -> Trained:
    """Read a checkpoint_*.pth without running code of it. Raises CheckpointError."""
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_scalars()), nullcontext():
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        weights = {_plain(name): value for name, value in data["network_weights"].items()}
        if not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise TypeError("network_weights are not tensors")
        axes = data.get("inference_allowed_mirroring_axes") or ()
        if not set(axes) <= {0, 1, 2}:
            raise ValueError(f"inference_allowed_mirroring_axes are {axes}, which three dimensions do not have")
        return Trained(weights, str(data["init_args"]["configuration"]), str(data["trainer_name"]), tuple(axes))
    except pickle.UnpicklingError as error:
        words = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        found = words.split("Please use")[0].strip()[:200]
        todo = "only tensors and numbers are read; see how it was saved"
        raise CheckpointError(path, "a checkpoint of tensors and numbers", found, todo) from None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(path, "an nnU-Net v2 checkpoint", found, "copy the file again") from None


def _numpy_scalars() -> list[Any]:
    """numpy's numbers, as checkpoints hold them in their logs, under the module names of numpy 1 and 2."""
    import numpy as np

    types = [np.bool_, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    dtypes = {type(np.dtype(kind)) for kind in types}
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, *types, *dtypes, *((scalar, name) for name in names)]


def _is_zip(path: Path) -> bool:
    """torch's format since 1.6, of which only what is used need be read."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _plain(name: str) -> str:
    """A weight's name without what wrappers (torch.compile, DDP) put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"{error}"
        raise CheckpointError(path, "a JSON file of an nnU-Net v2 model", found, "copy the folder whole") from None
    if not isinstance(data, dict):
        raise CheckpointError(path, "a JSON object", type(data).__name__, "copy the folder whole")
    return data


def _plan(folder: Path, plans: dict[str, Any], dataset: dict[str, Any], first: Trained, members: int) -> Plan:
    """plans.json and dataset.json as a Plan. Raises CheckpointError."""
    path = folder / "plans.json"
    try:
        configuration = _configuration(path, plans, first.configuration)
        order = _order(path, plans)
        network, options = _network(path, configuration, order)
        patch = [int(configuration["patch_size"][axis]) for axis in order]
        divisor = [math.prod(step[axis] for step in options["strides"]) for axis in range(3)]
        if any(size < 1 or size % n for size, n in zip(patch, divisor, strict=True)):
            expected = f"a patch_size whose sides are divisible by the strides' products {divisor}"
            raise CheckpointError(path, expected, f"{patch} (axes of a file)", "copy the folder whole")
        labels, painted = _outputs(folder, dataset)
        classes = tuple(sorted(labels.labels, key=lambda name: labels.labels[name]))
        if [labels.labels[name] for name in classes] != list(range(1, len(classes) + 1)):
            found = f"{labels.labels}"
            raise CheckpointError(folder / "dataset.json", "labels numbered 0, 1, 2, ...", found, "number them so")
        channels = _channels(path, plans, configuration, dataset)
        spacing = [configuration["spacing"][axis] for axis in order]
        reorients = "Reorient" in str(plans.get("image_reader_writer", ""))
        return Plan(
            name=f"{plans.get('dataset_name', folder.parent.name)}-{first.configuration}",
            classes=classes,
            spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
            patch=(patch[0], patch[1], patch[2]),
            ct_windows_hu=(),
            channels=channels,
            network=network,
            network_options=options,
            regions=labels.regions,
            trained_on={"CT" if channels[0].scheme == "ct" else "MR": classes},
            orientation="RAS" if reorients else "file",
            resampling="nnunet",
            crop_nonzero=True,
            painted=painted,
            members=members,
            mirror_axes=tuple(axis for axis in range(3) if order[axis] in first.mirror_axes),
            mirror_swaps_sides=False,
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
        found = f"{type(error).__name__}: {error}"
        raise CheckpointError(path, "a plans.json of nnU-Net v2", found, "copy the folder whole") from None


def _configuration(path: Path, plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits. Raises CheckpointError for what this project does not run."""
    todo = "import another model"
    if name not in plans["configurations"]:
        found = f"configurations: {', '.join(plans['configurations'])}"
        raise CheckpointError(path, f"the configuration {name!r} of the checkpoint", found, "copy the folder whole")
    own = dict(plans["configurations"][name])
    seen = {name}
    while parent := own.pop("inherits_from", None):
        if parent in seen or parent not in plans["configurations"]:
            raise CheckpointError(path, f"a configuration to inherit from, {parent!r}", "none", "copy the folder whole")
        seen.add(parent)
        own = plans["configurations"][parent] | own
    if own.get("previous_stage"):
        found = f"{name}, the second stage of a cascade after {own['previous_stage']}"
        raise CheckpointError(path, "a model of one stage", found, "import 3d_fullres or 3d_lowres instead")
    if len(own["patch_size"]) != 3:
        raise CheckpointError(
            path, "a 3D configuration", f"{name}, which is 2D", "import 3d_fullres or 3d_lowres instead"
        )
    if own.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise CheckpointError(path, "the DefaultPreprocessor", own["preprocessor_name"], todo)
    for kind, order in (("data", 3), ("probabilities", 1)):
        function = own.get(f"resampling_fn_{kind}", RESAMPLING)
        settings = {"order": order, "order_z": 0, "force_separate_z": None} | own.get(
            f"resampling_fn_{kind}_kwargs", {}
        )
        expected = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        if function != RESAMPLING or {"is_seg": False} | settings != expected:
            raise CheckpointError(
                path, f"{RESAMPLING} of order {order}", f"{function} with {settings} for {kind}", todo
            )
    return own


def _order(path: Path, plans: dict[str, Any]) -> tuple[int, int, int]:
    """For each axis of a file (i, j, k) the axis of nnU-Net's network. Raises CheckpointError."""
    forward = plans.get("transpose_forward")
    if not isinstance(forward, list) or sorted(forward) != [0, 1, 2]:
        raise CheckpointError(path, "transpose_forward of three axes", f"{forward}", "copy the folder whole")
    return forward.index(2), forward.index(1), forward.index(0)


def _network(path: Path, configuration: dict[str, Any], order: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """Name and options of the network in nets/dynamic_unet.py. Raises CheckpointError for any other network."""
    architecture = configuration.get("architecture") or _old_architecture(configuration)
    full, options = str(architecture["network_class_name"]), architecture["arch_kwargs"]
    kind = full.rpartition(".")[2]
    if kind not in NETWORKS:
        raise CheckpointError(path, f"a network among {', '.join(NETWORKS)}", full, "other networks are not supported")
    for key, value in FIXED.items():
        given = options.get(key, value)
        given = given.rpartition(".")[2] if isinstance(given, str) else given
        if given != value:
            raise CheckpointError(path, f"{key} {value}", f"{given}", "other networks are not supported")
    if options.get("norm_op_kwargs", {"eps": 1e-5, "affine": True}) != {"eps": 1e-5, "affine": True} or set(
        options.get("nonlin_kwargs") or {}
    ) - {"inplace"}:
        raise CheckpointError(
            path, "nnU-Net's norm and nonlinearity", "other settings", "other networks are not supported"
        )
    stages = int(options["n_stages"])

    def each(value: Any) -> list[Any]:
        return list(value) if isinstance(value, list) else [value] * stages

    def turned(values: Any) -> list[list[int]]:
        triples = [value if isinstance(value, list) else [value] * 3 for value in each(values)]
        return [[int(triple[axis]) for axis in order] for triple in triples]

    depth = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return NETWORKS[kind], {
        "features": [int(n) for n in each(options["features_per_stage"])],
        "convolutions" if kind == "PlainConvUNet" else "blocks": [int(n) for n in each(options[depth])],
        "strides": turned(options["strides"]),
        "kernels": turned(options["kernel_sizes"]),
        "decoder": [int(n) for n in each(options["n_conv_per_stage_decoder"])][: stages - 1],
    }


def _old_architecture(configuration: dict[str, Any]) -> dict[str, Any]:
    """The same of plans that were written before nnU-Net 2.4."""
    kind, stages = configuration["UNet_class_name"], len(configuration["n_conv_per_stage_encoder"])
    most, base = configuration["unet_max_num_features"], configuration["UNet_base_num_features"]
    depth = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    options = {
        "n_stages": stages,
        "features_per_stage": [min(most, base * 2**stage) for stage in range(stages)],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        depth: configuration["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
    }
    return {"network_class_name": kind, "arch_kwargs": options}


def _outputs(folder: Path, dataset: dict[str, Any]) -> tuple[LabelFile, tuple[int, ...]]:
    """The classes, and for a model of regions the id that each output paints. Raises CheckpointError."""
    labels = read_label_file(folder / "dataset.json")
    if not any(isinstance(value, list) and len(value) > 1 for value in dataset["labels"].values()):
        return labels, ()
    named = [name for name, value in dataset["labels"].items() if name != "ignore" and value not in (0, [0])]
    painted = tuple(int(value) for value in dataset.get("regions_class_order", ()))
    if len(painted) != len(named):
        found = f"{len(painted)} for {len(named)} regions"
        raise CheckpointError(folder / "dataset.json", "regions_class_order, one id a region", found, "copy it again")
    return labels, painted


def _channels(
    path: Path, plans: dict[str, Any], configuration: dict[str, Any], dataset: dict[str, Any]
) -> tuple[Channel, ...]:
    """The input channels and how each is normalised. Raises CheckpointError for a scheme that is not known."""
    names = dataset.get("channel_names") or dataset["modality"]
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if not len(names) == len(schemes) == len(masked):
        raise CheckpointError(
            path, f"a normalisation for {len(names)} channels", f"{len(schemes)}", "copy the folder whole"
        )
    channels = []
    for number, (scheme, inside) in enumerate(zip(schemes, masked, strict=True)):
        if scheme not in SCHEMES:
            raise CheckpointError(path, f"normalisation among {', '.join(SCHEMES)}", scheme, "it is not supported")
        name, own = str(names[str(number)]), SCHEMES[scheme]
        if own == "zscore" and inside:
            own = "zscore_nonzero"
        if own != "ct":
            channels.append(Channel(name, own))
            continue
        values = plans["foreground_intensity_properties_per_channel"][str(number)]
        keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
        mean, std, low, high = (float(values[key]) for key in keys)
        channels.append(Channel(name, own, mean, std, low, high))
    return tuple(channels)


def _turned(weight: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """A convolution's kernel with its axes as in files; other weights as they are."""
    return weight.permute(0, 1, *(2 + axis for axis in order)).contiguous() if weight.ndim == 5 else weight


def _card(folder: Path, plan: Plan, first: Trained, folds: list[str]) -> str:
    """The model card."""
    spacing = " x ".join(f"{step:g}" for step in plan.spacing_mm)
    inputs = ", ".join(
        f"{number:04d} {channel.name} ({channel.scheme})" for number, channel in enumerate(plan.channels)
    )
    return f"""# {plan.name}

Imported from an nnU-Net v2 model, `{folder.name}`, trained by {first.trainer}; weights of fold {", ".join(folds)}.

- Classes: {", ".join(plan.classes)}
- Input channels: {inputs}
- Network: {plan.network}, windows of {" x ".join(map(str, plan.patch))} voxels of {spacing} mm
- Licence and training data: those of the model it was made from. Not a medical device.
"""
