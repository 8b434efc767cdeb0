"""Heads that classify a whole scan from what the segmentation network saw of it on the way to the mask.

Every window adds statistics: the mean of each encoder feature, its mean under the probability of lesion, and the mean
probability of each class of the mask. They are means over voxels, so the mean over all windows is that of the scan, and
one window in training looks like a small scan. The finest feature map is left out: it takes most of the memory and the
next one sees as much. The mask's probabilities pass no gradient back: a head may not bend the mask to its purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from seg_backbone.errors import CheckpointError
from seg_backbone.io import replacing
from seg_backbone.plan import Plan, ScanHeadPlan, ScanTask
from seg_backbone.scan_classes import Probabilities

WithPooled = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # of any runtime, see WithStatistics
WEIGHTS = "heads.safetensors"
NO_LESION = 1e-6  # mean probability of lesion that counts as none: the features under it become 0


class ScanHeads(nn.Module):
    """One head a task: a norm and a hidden layer on pooled features and on the log of the volume (ml) of what the mask
    shows.

    Dimension legend, F features of the pooled encoder stages, C classes of the mask, L of them lesions:
        statistics  (B, 2 F + 1 + C)    under lesions: sum of the features, of the probability; all: features, classes
        lesion      (B, F + L)          features under lesions, log(1 + ml) of the lesions
        volume      (B, F + C)          features, log(1 + ml) of the classes
        output      (B, sum of the tasks' classes)    logits, task after task
    """

    def __init__(self, plan: Plan, features: int) -> None:
        super().__init__()
        assert plan.heads is not None
        self.plan = plan.heads
        self.features = features
        self.lesions = [plan.labels[name] - 1 for name in plan.heads.lesions or plan.classes]
        self.voxel_ml = prod(plan.spacing_mm) / 1000
        self.widths = {"lesion": features + len(self.lesions), "volume": features + len(plan.classes)}
        self.layers = nn.ModuleList(self._layers(task, plan.heads.hidden) for task in plan.heads.tasks.values())

    def _layers(self, task: ScanTask, hidden: int) -> nn.Module:
        width = sum(self.widths[part] for part in task.pooling)
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, len(task.classes))
        )

    def extra_repr(self) -> str:
        return f"lesions={self.lesions}"  # by it and the weights converted models are told apart

    def forward(self, maps: Sequence[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """Of windows, each taken for a scan. maps, logits: what the network's encoder and decoder return."""
        return self.classify(self.statistics(maps, logits), self.voxel_ml * prod(logits.shape[2:]))

    def statistics(self, maps: Sequence[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """See the class. Always float32: sums over so many voxels do not fit half precision."""
        with torch.autocast(logits.device.type, enabled=False):
            classes = logits.detach().float().softmax(dim=1)[:, 1:]
            lesion = classes[:, self.lesions].sum(dim=1, keepdim=True)
            under, everywhere = [], []
            for features in (one.float() for one in maps[1:]):
                weight = F.adaptive_avg_pool3d(lesion, features.shape[2:])
                under.append((features * weight).mean(dim=(2, 3, 4)))
                everywhere.append(features.mean(dim=(2, 3, 4)))
            shares = (lesion.mean(dim=(2, 3, 4)), *everywhere, classes.mean(dim=(2, 3, 4)))
            return torch.cat([*under, *shares], dim=1)

    def classify(self, statistics: torch.Tensor, ml: float) -> torch.Tensor:
        """Statistics of scans of so many ml -> logits."""
        sizes = (self.features, 1, self.features, statistics.shape[1] - 2 * self.features - 1)
        under, share, everywhere, classes = statistics.split(sizes, dim=1)
        volumes = (classes * ml).log1p()
        parts = {
            "lesion": torch.cat([under / (share + NO_LESION), volumes[:, self.lesions]], dim=1),
            "volume": torch.cat([everywhere, volumes], dim=1),
        }
        rows = zip(self.layers, self.plan.tasks.values(), strict=True)
        with torch.autocast(statistics.device.type, enabled=False):
            return torch.cat([head(torch.cat([parts[name] for name in task.pooling], 1)) for head, task in rows], 1)


def pooled_features(network: nn.Module, plan: Plan) -> int:
    """How many encoder features a network has that heads pool. Shapes only: nothing is computed."""
    with torch.inference_mode():
        shapes = deepcopy(network).eval().to("meta")
        maps = shapes.encoder(torch.empty((1, plan.inputs, *plan.patch), device="meta"))  # type: ignore[operator]
    return sum(one.shape[1] for one in maps[1:])


class WithStatistics(nn.Module):
    """A network that says beside its logits what its heads pool: windows -> logits, (B, members x statistics).

    heads: one for each member of an ensemble, whose feature maps lie side by side.
    """

    def __init__(self, network: nn.Module, heads: Sequence[ScanHeads]) -> None:
        super().__init__()
        self.network, self.heads = network, nn.ModuleList(heads)

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.network.encoder(windows)  # type: ignore[operator]
        logits = self.network.decoder(maps)  # type: ignore[operator]
        return logits, self.pooled(maps, logits)

    def pooled(self, maps: Sequence[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """What the heads pool of maps and logits that are there already."""
        members = [one.chunk(len(self.heads), dim=1) for one in maps]
        each = [
            head.statistics([parts[number] for parts in members], logits)  # type: ignore[operator]
            for number, head in enumerate(self.heads)
        ]
        return torch.cat(each, dim=1)


class ScanPool:
    """The statistics of one scan, window after window, and what the heads make of them."""

    def __init__(self, network: WithStatistics) -> None:
        self.network = network
        self.heads: list[ScanHeads] = list(network.heads)  # type: ignore[arg-type]
        self.total: torch.Tensor | None = None
        self.windows = 0

    def add(self, statistics: torch.Tensor) -> None:
        """Windows, see WithStatistics: (B, members x statistics)."""
        each = statistics.sum(dim=0)
        self.total = each if self.total is None else self.total + each
        self.windows += len(statistics)

    def probabilities(self, voxels: int) -> Probabilities:
        """What the scan is, the mean over the members. voxels: of the working grid, padding included.

        {} where no window was run.
        """
        if self.total is None:
            return {}
        tasks = self.heads[0].plan.tasks
        sizes = [len(task.classes) for task in tasks.values()]
        of_members = []
        for head, total in zip(self.heads, self.total.chunk(len(self.heads)), strict=True):
            logits = head.classify(total[None] / self.windows, head.voxel_ml * voxels)[0]
            of_members.append([part.softmax(dim=0) for part in logits.split(sizes)])
        means = [torch.stack(parts).mean(dim=0).tolist() for parts in zip(*of_members, strict=True)]
        return {
            name: dict(zip(tasks[name].classes, mean, strict=True)) for name, mean in zip(tasks, means, strict=True)
        }


def save_heads(heads: Sequence[ScanHeads], folder: str | Path) -> None:
    """Write `heads.safetensors` into a model folder, float32."""
    from safetensors.torch import save_file

    state = nn.ModuleList(heads).state_dict()
    with replacing(Path(folder) / WEIGHTS) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, temporary)


def load_heads(folder: str | Path, plan: Plan) -> list[ScanHeads]:
    """The heads of a model folder in eval mode, one a member; [] for a plan without any. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if plan.heads is None:
        return []
    path = Path(folder) / WEIGHTS
    try:
        state = load_file(path)
        features = _features(plan, plan.heads, len(state["0.layers.0.0.weight"]))
        heads = [ScanHeads(plan, features) for _ in range(plan.members)]
        nn.ModuleList(heads).load_state_dict(state)
    except (OSError, KeyError, SafetensorError, RuntimeError) as error:
        found = str(error).splitlines()[0]
        raise CheckpointError(path, "the heads of plan.json", found, "train them again, or set heads to null") from None
    return [head.eval() for head in heads]


def _features(plan: Plan, heads: ScanHeadPlan, width: int) -> int:
    """Pooled encoder features, from the width of the first task's input: spares building the network for it."""
    first: ScanTask = next(iter(heads.tasks.values()))
    more = {"lesion": len(heads.lesions or plan.classes), "volume": len(plan.classes)}
    return (width - sum(more[part] for part in first.pooling)) // len(first.pooling)
