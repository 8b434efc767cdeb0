"""`vlm data`: questions from annotated datasets, import of public sets, pseudo-labels, synthetic tumours, checks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from seg_backbone.plan import Plan
    from seg_backbone.pseudo_dataset import ScanToLabel
    from vlm.data.sources.question_source import QuestionSource
    from vlm.data.sources.scan_source import ScanSource

app = typer.Typer(
    help="Make questions from annotated scans; import public sets; check both; label scans by a model.",
    no_args_is_help=True,
)

CONFIG = Path("configs/segmentation.yaml")


@app.command()
def questions(
    folders: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="nnU-Net raw folders of one parent.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="QUESTIONS.jsonl to write.")],
    split: Annotated[Path | None, typer.Option(help="Split file, for example configs/split.json.")] = None,
    part: Annotated[str, typer.Option(help="Part of the split: training, validation, ... or all.")] = "all",
    wordings: Annotated[str, typer.Option(help="train, heldout or both.")] = "train",
    per_case: Annotated[int, typer.Option(min=1, help="Questions a case, at most.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed gives the same questions.")] = 0,
    absent: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET=CLASS,CLASS", help="Classes that cannot be in view; repeatable, over --config."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help=f"YAML whose `datasets` list `absent` classes; default {CONFIG} if there.")
    ] = None,
    targets: Annotated[
        Path | None, typer.Option(help="YAML of scan-level targets from a csv, see vlm/data/targets.py.")
    ] = None,
    include_open: Annotated[
        bool, typer.Option("--open", help="Also open and off-topic questions, unanswered.")
    ] = False,
    balance: Annotated[
        bool, typer.Option(help="Leave out what can be guessed from the words alone, down to 1.3 times chance.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Write questions with answers measured on the reference masks, and say what can be guessed from their words alone.

    `image` is relative to DATASET; with several datasets, to the folder that holds them.
    """
    import json
    from collections import Counter
    from dataclasses import asdict

    from seg_backbone.cases import read_split
    from seg_backbone.errors import ConfigError
    from seg_backbone.io import replacing
    from vlm.data.guess import question_only, rebalance
    from vlm.data.questions import generate
    from vlm.data.targets import read_targets

    folders = [folder.resolve() for folder in folders]
    if len({folder.parent for folder in folders}) > 1:
        raise ConfigError("DATASET", "datasets of one parent folder", "several parents", "run once for each")
    source = config or (CONFIG if CONFIG.is_file() else None)
    with _bar("asking") as progress, replacing(out) as temporary:
        drawn = generate(
            folders[0].parent,
            list(dict.fromkeys(folder.name for folder in folders)),
            split=read_split(split) if split else None,
            part=part,
            wordings_part=wordings,
            per_case=per_case,
            seed=seed,
            absent=_absent(source, absent or []),
            progress=progress,
            include_open=include_open,
            targets=read_targets(targets),
        )
        asked = list(drawn)
        asked, guessed = rebalance(asked) if balance else (asked, question_only(asked))
        lines = (json.dumps(question.to_json(), ensure_ascii=False) + "\n" for question in asked)
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    counts = Counter(str(question.type) for question in asked)
    base = folders[0] if len(folders) == 1 else folders[0].parent
    if as_json:
        words_alone = {kind: asdict(baseline) for kind, baseline in guessed.items()}
        found = {"questions": counts.total(), "by_type": dict(counts), "question_only": words_alone}
        print(json.dumps(found | {"images_relative_to": str(base)}))
    else:
        print(", ".join(f"{number} {kind}" for kind, number in counts.most_common()) or "no questions")
        for kind, told in guessed.items():
            words = f"{told.right:.3f} right from the words alone, chance {told.chance:.3f}"
            print(f"{kind}: {words}, {told.left_out} of {told.guesses + told.left_out} left out", file=sys.stderr)
        print(f"Wrote {counts.total()} questions to {out}; images are relative to {base}", file=sys.stderr)


def _list_formats(wanted: bool) -> None:
    """Print the formats, each with what it writes and the first line of its docstring, and leave."""
    if not wanted:
        return
    from vlm.data.sources import FORMATS, describe

    for name in FORMATS:
        kind, title = describe(name)
        print(f"{name:17} {kind:10} {title}")
    raise typer.Exit()


@app.command("import")
def import_(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="A name of --list.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or the folder of the set.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="QUESTIONS.jsonl, or the nnU-Net raw folder to write.")],
    columns: Annotated[
        str, typer.Option(metavar="ROLE=COLUMN,...", help="Columns of a question set, before the format's own names.")
    ] = "",
    classes: Annotated[
        Path | None, typer.Option(help="YAML of CLASS: [names] for ROIs, before vlm/data/roi_names.yaml.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of csv and JSON files that are not UTF-8: cp1252, latin-1, ...")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave faulty rows or cases out and say which.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy scans; default: link to them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", callback=_list_formats, is_eager=True, help="List the formats and leave.")
    ] = False,
) -> None:
    """Turn a public question set into QUESTIONS.jsonl, or annotated scans into an nnU-Net raw folder."""
    from seg_backbone.errors import ConfigError
    from vlm.data.sources import load_source
    from vlm.data.sources.question_source import QuestionSource

    source = load_source(format)
    if isinstance(source, QuestionSource):
        if copy or classes:
            flag = "--copy" if copy else "--classes"
            raise ConfigError(flag, "a set of scans", f"{format}, a question set", "leave it out")
        _import_questions(source, path, out, _column_map(columns), skip_bad, encoding, as_json)
    else:
        if columns or encoding:
            flag = "--columns" if columns else "--encoding"
            raise ConfigError(flag, "a question set", f"{format}, a set of scans", "leave it out")
        if classes and not source.named:
            raise ConfigError(
                "--classes", "rtstruct or dicom-seg", f"{format}, whose classes are known", "leave it out"
            )
        _import_scans(source, path, out, copy, classes, skip_bad, as_json)


def _column_map(text: str) -> dict[str, str]:
    """ "question=Q,image=path" -> role -> column."""
    from seg_backbone.errors import ConfigError

    pairs = [[part.strip() for part in pair.split("=", 1)] for pair in text.split(",") if pair.strip()]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ConfigError("--columns", "ROLE=COLUMN,ROLE=COLUMN", repr(text), "for example question=Q,image=path")
    return {role: column for role, column in pairs}


def _import_questions(
    source: QuestionSource,
    path: Path,
    out: Path,
    columns: dict[str, str],
    skip_bad: bool,
    encoding: str | None,
    as_json: bool,
) -> None:
    import json

    from vlm.data.import_questions import import_questions

    told = "left out" if skip_bad else "fault"
    with _bar("importing") as progress:
        done = import_questions(
            source,
            path,
            out,
            columns,
            skip_bad,
            progress,
            encoding,
            tell=lambda fault: print(f"{told}: {fault}", file=sys.stderr),
        )
    taken = {role: list(names) for role, names in done.columns.items()}
    if as_json:
        counts = {"questions": done.by_type.total(), "by_type": dict(done.by_type), "left_out": done.left_out}
        rest = {"without_scan": done.no_scan, "columns": taken, "images_relative_to": str(done.folder)}
        print(json.dumps(counts | rest))
        return
    print(", ".join(f"{number} {kind}" for kind, number in done.by_type.most_common()) or "no questions")
    print("Columns: " + ", ".join(f"{role}={'|'.join(names)}" for role, names in taken.items()), file=sys.stderr)
    if done.left_out or done.no_scan:
        print(f"Left out: {done.left_out} faulty rows, {done.no_scan} about no scan", file=sys.stderr)
    print(f"Wrote {done.by_type.total()} questions to {out}; images are relative to {done.folder}", file=sys.stderr)


def _import_scans(
    source: ScanSource, path: Path, out: Path, copy: bool, classes: Path | None, skip_bad: bool, as_json: bool
) -> None:
    import json
    from dataclasses import asdict

    from vlm.data.import_scans import import_scans

    with _bar("importing") as progress:
        done = import_scans(source, path, out, copy, progress, classes, skip_bad)
    for line in (*done.notes, *(f"left out: {fault}" for fault in done.faults)):
        print(line, file=sys.stderr)
    for pair, (cases, volume_ml) in done.overlaps.items():
        print(f"overlap: {pair}, {volume_ml:.1f} ml in {cases} cases", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(", ".join(f"{name} {number}" for name, number in done.annotated.items()))
    print(f"Wrote {done.labelled} labelled and {done.unlabelled} unlabelled scans to {out}", file=sys.stderr)
    print(f"What each annotates is in {out.parent / 'manifest.jsonl'}; now run: vlm data check {out}", file=sys.stderr)


@app.command()
def pseudolabel(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Scans, folders of them, or nnU-Net raw folders.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="nnU-Net raw folder to write.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model that labels.")] = "default",
    certain: Annotated[float, typer.Option(help="Least probability of a voxel's class; others are ignored.")] = 0.9,
    previous: Annotated[
        Path | None, typer.Option(help="Pseudo-labels of the round before, which the new ones must agree with.")
    ] = None,
    stable: Annotated[
        float, typer.Option(help="Least Dice of a class with --previous, else a case leaves it open.")
    ] = 0.7,
    minimum_ml: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=ML", help="Components below are ignored, over the model's own; repeatable."),
    ] = None,
    absence: Annotated[
        bool, typer.Option("--absence", help="What is found nowhere in a scan is taught as absent, not left open.")
    ] = False,
    mirror: Annotated[bool, typer.Option(help="Mean over the flips that the model was trained with.")] = True,
    partial: Annotated[
        bool, typer.Option(help="Also scans with labels, for the classes that they leave open and nobody drew.")
    ] = True,
    modality: Annotated[
        Literal["CT", "MR"] | None, typer.Option(help="Of the scans; a dataset or a DICOM tells, others are guessed.")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")] = "auto",
    copy: Annotated[bool, typer.Option("--copy", help="Copy scans; default: link to them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Label scans by a model, for training: a dataset whose uncertain voxels are ignored, marked as pseudo.

    Of nnU-Net raw folders the cases that annotate nothing are labelled; those that leave some of the model's classes
    open get these besides what people drew. A run that was interrupted goes on.
    """
    import json
    from dataclasses import asdict

    from seg_backbone.checkpoint import PLAN, find_model
    from seg_backbone.errors import ConfigError
    from seg_backbone.plan import Plan
    from seg_backbone.predict import choose_device
    from seg_backbone.pseudo_dataset import finish_dataset, label_scans
    from seg_backbone.pseudo_labels import PseudoRules
    from vlm.cli.progress import bar

    try:
        rules = PseudoRules(certain, stable, _volumes(minimum_ml or []), absence, mirror)
    except AssertionError as error:
        raise ConfigError("rules", str(error), "another value", "correct it") from None
    plan = Plan.read(find_model(model) / PLAN)
    scans = _scans_to_label(paths, out, modality, plan, partial)
    with bar("labelling") as progress:
        faults = label_scans(out, scans, model, rules, previous, choose_device(device), progress)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if len(faults) == len(scans):
        raise typer.Exit(2)
    done = finish_dataset(out, scans, plan, copy)
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print(", ".join(f"{name} {number}" for name, number in done.annotated.items()))
        left = f"; left out: {', '.join(done.left_out)}" if done.left_out else ""
        print(f"Wrote {done.cases} cases to {out}, {done.ignored:.1%} of their voxels ignored{left}", file=sys.stderr)
    if faults:
        raise typer.Exit(1)


def _scans_to_label(paths: list[Path], out: Path, modality: str | None, plan: Plan, partial: bool) -> list[ScanToLabel]:
    """The scans to label, of datasets those without annotation, or also with some of the classes that the model knows.

    Raises ScanError; ConfigError for two of one name.
    """
    from seg_backbone.cases import DatasetEntry, list_cases
    from seg_backbone.errors import ConfigError
    from seg_backbone.pseudo_dataset import ScanToLabel
    from seg_backbone.pseudo_labels import taught
    from vlm.cli.segment import collect

    datasets = [path.resolve() for path in paths if (path / "imagesTr").is_dir()]
    scans = []
    for folder in datasets:
        for files in list_cases(folder.parent, folder.name):
            scan = ScanToLabel.of(files, DatasetEntry(folder.name))
            unlabelled = files.mask is None or not files.annotated
            fillable = files.real and set(taught(plan, files.modality)) & set(scan.left_open(plan))
            if unlabelled or (partial and fillable):
                scans.append(scan)
    loose = [path for path in paths if path.resolve() not in datasets]
    scans += [ScanToLabel(case, Path(scan), modality) for case, scan in collect(loose, out, len(plan.channels)).items()]
    names = [scan.case for scan in scans]
    if not names or len(set(names)) < len(names):
        found = f"{max(names, key=names.count)} twice" if names else "none"
        raise ConfigError(paths[0], "scans that leave a class open, of different names", found, "check the paths")
    return scans


def _volumes(pairs: list[str]) -> dict[str, float]:
    """ "tumour=1.5" -> canonical class -> ml. Raises ConfigError."""
    from seg_backbone.errors import ConfigError
    from seg_backbone.labels import canonical

    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[canonical(name)] = float(value)
        except ValueError:
            raise ConfigError("--minimum-ml", "CLASS=ML", repr(pair), "for example tumour=1") from None
    return found


@app.command()
def synthesise(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="nnU-Net raw folder of real scans.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="nnU-Net raw folder to write; an interrupted one goes on.")],
    inside: Annotated[
        str | None, typer.Option(help="Classes to draw in, by commas, or body: soft tissue of no class. [body]")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Class of the tumours. [tumour]")] = None,
    count: Annotated[str | None, typer.Option(metavar="N|N-M", help="Tumours a scan. [1-3]")] = None,
    sizes: Annotated[str | None, typer.Option(help="Of tiny, small, medium, large, by commas. [all]")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with these and more: contrast, edge, texture, mass effect (TumourRecipe).")
    ] = None,
    copies: Annotated[int, typer.Option(min=1, help="Cases made of each scan.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same tumours.")] = 0,
    split: Annotated[Path | None, typer.Option(help="Split file: only its training patients.")] = None,
    lesion_free: Annotated[
        bool, typer.Option("--lesion-free", help="Scans that do not annotate the class have no real lesion of it.")
    ] = False,
    regions: Annotated[
        Path | None, typer.Option(help="Folder of masks CASE.nii.gz; tumours lie inside of them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Draw synthetic tumours into real scans, to train on. Every output says that it is synthetic."""
    import json

    import yaml

    from seg_backbone.cases import read_split
    from seg_backbone.errors import ConfigError
    from seg_backbone.synthetic_dataset import synthesise as write
    from seg_backbone.synthetic_tumours import TumourRecipe

    try:
        said = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe else {}
        if not isinstance(said, dict):
            raise ValueError(f"{type(said).__name__}, not keys and values")
        said |= {"inside": inside.split(",")} if inside else {}
        said |= {"label": label} if label else {}
        said |= {"count": [int(number) for number in count.split("-")] * (2 - count.count("-"))} if count else {}
        said |= {"sizes": dict.fromkeys(map(str.strip, sizes.split(",")), 1.0)} if sizes else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        expected = "YAML of a recipe, and N or N-M tumours"
        raise ConfigError(recipe or "--count", expected, str(error).splitlines()[0], "see --help") from None
    look = TumourRecipe.of(said, str(recipe or "recipe"))
    with _bar("drawing") as progress:
        table = read_split(split) if split else None
        done = write(dataset, out, look, copies, seed, table, lesion_free, regions, progress)
    for name, reason in [*done.skipped.items(), *done.failed.items()]:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps(done.to_json()))
    else:
        counted = ", ".join(f"{number} {size}" for size, number in done.by_size.most_common())
        print(f"{done.by_size.total()} synthetic tumours in {done.cases} cases: {counted}")
        print(f"Wrote {out}, and what each case annotates to {out.parent / 'manifest.jsonl'}", file=sys.stderr)
    if done.failed:
        raise typer.Exit(1)


@app.command()
def shuffle(
    questions: Annotated[Path, typer.Argument(metavar="QUESTIONS.jsonl")],
    out: Annotated[Path, typer.Option("-o", "--out", help="QUESTIONS.jsonl to write.")],
    seed: Annotated[int, typer.Option(help="The same seed deals the same images.")] = 0,
) -> None:
    """Give every question another patient's scan of the same dataset, and keep its answer.

    Answer both files and score both against the first: answers that depend on the image fall to what can be guessed.
    """
    import json

    from seg_backbone.errors import ConfigError
    from seg_backbone.io import replacing
    from vlm.data.shuffle import shuffle_images
    from vlm.schema import read_questions

    if out.exists() and questions.exists() and out.samefile(questions):
        raise ConfigError(out, "another file than the questions", "the same", "name another file")
    dealt = shuffle_images(list(read_questions(questions)), seed)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(question.to_json(), ensure_ascii=False) + "\n" for question in dealt)
    print(f"Wrote {len(dealt)} questions to {out}; images are relative to the same folder", file=sys.stderr)


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DATASET|QUESTIONS.jsonl", help="An nnU-Net raw folder, or a question file.")
    ],
    scans: Annotated[
        Path | None, typer.Option(help="Folder that `image` of a question is relative to; default the file's.")
    ] = None,
) -> None:
    """List the faults of a dataset or of a question file, one a line; exit code 2 where there are any."""
    from vlm.data.check import find_faults

    if folder.is_file() or folder.suffix == ".jsonl":
        faults = _question_faults(folder, scans or folder.parent)
    else:
        with _bar("checking") as progress:
            faults = find_faults(folder.resolve(), progress)
    for fault in faults:
        print(" ".join(fault.splitlines()))  # names of files may hold line breaks
    if faults:
        raise typer.Exit(2)
    print(f"No faults in {folder}", file=sys.stderr)


def _question_faults(path: Path, scans: Path) -> list[str]:
    """One line a fault, with its line number. Where every line is sound, also the first reference that cannot score."""
    from eval.references import read_references
    from seg_backbone.errors import QuestionError
    from vlm.schema import scan_questions

    faults, answered = [], False
    for _, question in scan_questions(path, scans):
        if isinstance(question, QuestionError):
            faults.append(str(question))
        else:
            answered |= question.answer is not None
    if answered and not faults:
        try:
            read_references(path)
        except QuestionError as error:
            faults.append(str(error))
    return faults


def _absent(config: Path | None, pairs: list[str]) -> dict[str, tuple[str, ...]]:
    """Dataset -> canonical classes that cannot be in view: those of the configuration, replaced by the pairs given."""
    import yaml

    from seg_backbone.errors import ConfigError
    from seg_backbone.labels import canonical

    found: dict[str, tuple[str, ...]] = {}
    if config is not None:
        try:
            entries = yaml.safe_load(config.read_text(encoding="utf-8"))["datasets"]
            found = {entry["name"]: tuple(map(canonical, entry.get("absent", ()))) for entry in entries}
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(config, "YAML with a `datasets` list", str(error), f"see {CONFIG}") from None
    for pair in pairs:
        dataset, _, classes = pair.partition("=")
        if not dataset or not classes:
            raise ConfigError("--absent", "DATASET=CLASS,CLASS", repr(pair), "name the dataset and its classes")
        found[dataset] = tuple(canonical(name) for name in classes.split(",") if name.strip())
    return found


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress callback (done, total, case), drawn on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, case: bar.update(
            task, completed=done, total=total or None, description=f"{what} {case}"
        )
