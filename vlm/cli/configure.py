"""`vlm configure DATASET -o PLAN`: a training configuration from the data and from what a scan may cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from seg_backbone.budget import Budget, Configured
    from seg_backbone.cases import CaseFiles
    from seg_backbone.plan import ScanHeadPlan


def configure(
    folder: Annotated[Path, typer.Argument(metavar="DATASET", help="An nnU-Net raw folder with labels.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PLAN.json to write, for `vlm train segmentation`.")],
    max_gpu_mb: Annotated[float | None, typer.Option(min=1, help="GPU memory while segmenting a scan.")] = None,
    max_ram_mb: Annotated[float | None, typer.Option(min=1, help="RAM while segmenting a scan.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.01, help="Time to segment a scan.")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the network will be used.")] = "cpu",
    known: Annotated[
        Path | None, typer.Option("--fingerprint", help="PLAN.fingerprint.json of before: reads no scan again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is in PLAN's `configured`.")] = False,
) -> None:
    """Choose spacing, patch, network and windows for a dataset, so that every scan of it can be segmented in budget.

    PLAN.json goes to `vlm train segmentation --config` as it is: nnU-Net's recipe, on a CPU with AdamW. Beside it:
    PLAN.fingerprint.json, and five folds in PLAN.split.json where the dataset has no splits_final.json. Where
    dataset.json has `classification_labels`, the classes of whole scans in cls_data.csv are learned too.
    """
    import json
    from dataclasses import asdict

    from seg_backbone.budget import FAMILY, Budget
    from seg_backbone.budget import configure as choose
    from seg_backbone.cases import list_cases
    from seg_backbone.configure import PRESETS, normalisation, plan_training, recipe
    from seg_backbone.fingerprint import Fingerprint, fingerprint
    from seg_backbone.io import replacing, require_writable
    from vlm.cli.progress import bar
    from vlm.cli.train import refuse_faults

    folder = folder.resolve()
    require_writable(out.absolute().parent)
    if not known:
        refuse_faults([folder])
    budget = Budget(max_seconds, max_ram_mb, max_gpu_mb, device)
    cases = list_cases(folder.parent, folder.name)
    split = None if (folder / "splits_final.json").is_file() else _split(folder, cases)
    heads = _heads(folder, cases)
    if known:
        facts = Fingerprint.read(known)
        _require_same_cases(known, facts.cases, cases)
    else:
        with bar("reading") as progress:
            facts = fingerprint(folder, progress)
    chosen = choose(facts, cases, budget, folder.name)

    plan = chosen.plan.with_(network_options=chosen.plan.network_options | {"deep_supervision": True})
    beside = {kind: out.with_name(f"{out.name.removesuffix('.json')}.{kind}.json") for kind in ("fingerprint", "split")}
    configured = {
        "budget": asdict(budget),
        **chosen.to_json(),
        "fingerprint": str(beside["fingerprint"]),
        "normalisation_of_nnunet": normalisation(facts),
        "plans_of_nnunet": {name: asdict(plan_training(facts, preset)) for name, preset in PRESETS.items()},
    }
    training = {
        "data": str(folder.parent),
        "output": f"runs/{folder.name}",
        **({"split": str(beside["split"].resolve())} if split else {}),
        "plan": asdict(plan.with_(regions=cases[0].regions, heads=heads)),
        "datasets": [{"name": folder.name}],
        **recipe(facts, plan, FAMILY, device),
        "configured": configured,
    }
    texts = {beside["fingerprint"]: facts.to_json(), out: json.dumps(training, indent=2) + "\n"}
    texts |= {beside["split"]: json.dumps(split, indent=1) + "\n"} if split else {}
    for path, text in texts.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(json.dumps(configured, indent=2) if as_json else _table(chosen, budget, training, heads))


def _split(folder: Path, cases: list[CaseFiles]) -> dict[str, Any]:
    """A split file's content: who validates in each fold. Raises ConfigError."""
    from seg_backbone.errors import ConfigError
    from seg_backbone.folds import folds

    parts = folds([case for case in cases if case.real])
    if len(parts) < 2:
        raise ConfigError(folder, "two cases with masks or more", f"{len(parts)}", "add one to validate on")
    about = "Folds of the patients; `fold` of a training file, from 0, says which one validates. The others train."
    return {"about": about, "folds": [{"validation": patients} for patients in parts]}


def _heads(folder: Path, cases: list[CaseFiles]) -> ScanHeadPlan | None:
    """Heads for the dataset's classes of whole scans; None where it has none. Raises LabelError."""
    from seg_backbone.errors import LabelError
    from seg_backbone.labels import is_lesion
    from seg_backbone.plan import ScanHeadPlan, ScanTask
    from seg_backbone.scan_classes import CLASS_FILE, read_scan_classes, read_tasks

    tasks = read_tasks(folder / "dataset.json")
    if not tasks:
        return None
    known = read_scan_classes(folder / CLASS_FILE, tasks)
    for task in tasks:
        if not any(task in known.get(case.case, {}) for case in cases):
            raise LabelError(folder / CLASS_FILE, f"cases of imagesTr with a class of {task}", "none", "add them")
    lesions = tuple(name for name in cases[0].labels if is_lesion(name))
    return ScanHeadPlan({name: ScanTask(classes) for name, classes in tasks.items()}, lesions)


def _require_same_cases(path: Path, shapes: Any, cases: list[CaseFiles]) -> None:
    """Raises ConfigError where a fingerprint was made of other cases than the dataset has now."""
    from seg_backbone.errors import ConfigError

    stored, here = {shape.case for shape in shapes}, {case.case for case in cases if case.mask is not None}
    if stored != here:
        found = f"{len(stored - here)} others, {len(here - stored)} not there"
        raise ConfigError(path, "the cases of the dataset", found, "leave --fingerprint out")


def _table(chosen: Configured, budget: Budget, training: dict[str, Any], heads: ScanHeadPlan | None) -> str:
    """The plan and its training in a few lines, then predicted, measured and allowed cost."""
    plan, predicted, measured = chosen.plan, chosen.predicted, chosen.measured
    options = plan.network_options
    rows = [
        ("one window, s", predicted.window_s, measured.window_s, None),
        ("one window, MB", predicted.window_mb, measured.window_mb, None),
        (f"{predicted.case}: {predicted.windows} windows, s", predicted.seconds, measured.seconds, budget.seconds),
        ("peak RAM, MB", predicted.ram_mb, measured.ram_mb, budget.ram_mb),
        ("peak GPU memory, MB", predicted.gpu_mb, measured.gpu_mb, budget.gpu_mb),
    ]
    lines = [
        f"spacing   {' x '.join(f'{step:g}' for step in plan.spacing_mm)} mm (right, anterior, superior)",
        f"window    {' x '.join(map(str, plan.patch))} voxels, step {plan.step:g} of it",
        f"network   {plan.network}, features {options['features']}, blocks {options['blocks']}",
        f"training  {training['steps']} steps of batch {training['batch']}, {training['optimizer']} with the schedule "
        f"{training['schedule']}, deep supervision",
        *(f"scan      {name}: {', '.join(task.classes)}" for name, task in (heads.tasks if heads else {}).items()),
        f"{'':<38}{'predicted':>12}{'measured':>12}{'at most':>12}",
    ]
    for name, before, after, most in rows:
        lines.append(f"{name:<38}{before:>12.4g}{after:>12.4g}{'-' if most is None else f'{most:g}':>12}")
    scan = "that scan was segmented, with untrained weights"
    window = "one window was run; times and memory of a scan follow from it"
    return "\n".join([*lines, f"measured: {scan if chosen.whole else window}"])
