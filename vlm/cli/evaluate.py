"""`vlm evaluate`: scores of saved answers and saved masks, rankings of them, and what a command costs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eval.report.page import Page
    from eval.results import Results

app = typer.Typer(help="Score saved answers or masks, rank systems, measure a command.", no_args_is_help=True)

OutDir = Annotated[
    Path, typer.Option("-o", "--out", help="Folder for metrics.json, per_case.csv, table.md and report.html.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the metrics as JSON in place of the table.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap samples.")]


@app.command()
def answers(
    answers_file: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS", help="Answers of `vlm batch`, or texts of any model: .jsonl .csv .tsv .json."
        ),
    ],
    reference: Annotated[Path, typer.Option(help="Questions with their reference `answer`.")],
    out: OutDir,
    name: Annotated[str, typer.Option(help="What to call the answers in the table.")] = "model",
    compare: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Another answer file; repeatable.")
    ] = None,
    baseline_train: Annotated[
        Path | None, typer.Option(help="Training questions for a majority/median column (no scan seen).")
    ] = None,
    scans: Annotated[
        Path | None, typer.Option(help="Folder that `image` is relative to, for pictures in the report.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder of the masks that were asked, outlined there.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Ids of --masks: dataset.json or name -> id JSON; default MASKS/labels.json.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Key of the questions to tell apart, beside property, region, modality, source, ..."
        ),
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the ids; else found by name (id, uid, ...).")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the texts; else found by name (text, prediction, response, ...).")
    ] = None,
    report_metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE.py:FUNCTION", help="Your metric of open answers (predicted, reference) -> scores."
        ),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Score answers per question type, with 95 % intervals over patients."""
    from eval.answers import evaluate_answers
    from eval.report.answers import Pictures, answers_page
    from eval.report.slices import Folder
    from seg_backbone.labels import read_labels
    from vlm.cli.progress import stages

    if labels is None and masks is not None and (masks / "labels.json").is_file():
        labels = masks / "labels.json"
    pictures = None
    if scans or masks:
        names = read_labels(labels) if labels else {}
        pictures = Pictures(Folder(scans) if scans else None, Folder(masks) if masks else None, names)
    with stages() as progress:
        results = evaluate_answers(
            answers_file,
            reference,
            name=name,
            compare=_pairs("--compare", compare, "text-only=a.jsonl"),
            baseline_train=baseline_train,
            by=by or (),
            id_column=id_column,
            text_column=text_column,
            report_metrics=_pairs("--report-metric", report_metric, "green=my_green.py:scores"),
            seed=seed,
            resamples=resamples,
            progress=progress,
        )
        results.metrics()
        page = answers_page(results, pictures, lambda done, total: progress("drawing", done, total))
    _finish(results, out, as_json, page=page)


def _pairs(option: str, given: list[str] | None, example: str) -> dict[str, str]:
    """NAME=VALUE of a repeated option. Raises ConfigError: no name, no value, a name twice."""
    from seg_backbone.errors import ConfigError

    pairs: dict[str, str] = {}
    for one in given or []:
        name, _, value = one.partition("=")
        if not name or not value or name in pairs:
            raise ConfigError(option, "NAME=VALUE with a name of its own", repr(one), f"for example {example}")
        pairs[name] = value
    return pairs


@app.command()
def masks(
    pred_dir: Annotated[Path, typer.Argument(help="Predicted masks, CASE.nii.gz or any format that can be read.")],
    ref_dir: Annotated[Path, typer.Argument(help="Reference masks of the same names.")],
    out: OutDir,
    protocol: Annotated[str, typer.Option(help="flare23, flare24, corrected or automsc.")] = "corrected",
    labels: Annotated[Path | None, typer.Option(help="Reference ids: dataset.json or name -> id JSON.")] = None,
    pred_labels: Annotated[
        Path | None, typer.Option(help="Prediction ids; default PRED_DIR/labels.json, else as the reference.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="manifest.jsonl with each case's annotated classes and patient; default the one by REF_DIR."),
    ] = None,
    tolerances: Annotated[
        Path | None, typer.Option(help="JSON of class -> NSD tolerance in mm, in place of FLARE's.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score missing cases 0 and leave extra ones out (corrected).")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cases at once; default one a CPU, at most 8.")] = None,
    scans: Annotated[Path | None, typer.Option(help="Scans of the same names, for pictures in the report.")] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Score a folder of masks: DSC and NSD per case and class; protocol corrected adds HD95 and lesion by lesion.

    flare23, flare24 and automsc score as the official scripts do, bad input included, and say what they passed over;
    corrected refuses bad input by name. Each result states its protocol's rules. An interrupted run goes on where it
    was.
    """
    from eval.mask_files import find_manifest, read_annotated, read_patients
    from eval.protocols import read_tolerances
    from eval.report.masks import masks_page
    from eval.report.slices import Folder
    from eval.segmentation import evaluate_masks
    from seg_backbone.labels import read_labels
    from vlm.cli.progress import bar

    source = manifest or find_manifest(ref_dir)
    if protocol == "corrected" and manifest is None and source is not None:
        manifest = source
        print(f"Annotated classes from {manifest}", file=sys.stderr)
    folder = Folder(scans) if scans else None
    with bar("scoring") as report:
        results = evaluate_masks(
            pred_dir,
            ref_dir,
            protocol,
            read_labels(labels) if labels else None,
            pred_labels=read_labels(pred_labels) if pred_labels else None,
            annotated=read_annotated(manifest, ref_dir) if manifest else None,
            patients=read_patients(source, ref_dir) if source else None,
            tolerances_mm=read_tolerances(tolerances) if tolerances else None,
            allow_missing=allow_missing,
            jobs=jobs or min(8, len(os.sched_getaffinity(0))),
            keep_dir=out / ".cases",
            progress=report,
            seed=seed,
            resamples=resamples,
        )
    with bar("drawing") as progress:
        page = masks_page(results, folder, progress)
    _finish(results, out, as_json, page=page)


@app.command()
def classification(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS.csv", help="`identifier,probs`, as `vlm segment` writes it.")
    ],
    reference: Annotated[Path, typer.Option(help="cls_data.csv: `identifier` and a column a task.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for metrics.json, per_case.csv and table.md.")],
    labels: Annotated[
        Path | None, typer.Option(help="dataset.json with `classification_labels`; default the one by the reference.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out cases of the reference without a result.")
    ] = False,
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Score classes of whole scans as FLARE26's joint task does: balanced accuracy, F1, AUROC and more per task."""
    from eval.classification import evaluate_classes

    _finish(evaluate_classes(results, reference, labels, allow_missing, seed, resamples), out, as_json)


@app.command()
def rank(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS...", help="Folders that masks or answers wrote.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for leaderboard.json, .csv, .md, three .png and report.html.")
    ],
    tolerance_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds up to this count as equal (FLARE23: 15).")
    ] = 0.0,
    tolerance_mb: Annotated[
        float, typer.Option(min=0, help="Memory peaks up to this count as equal (FLARE23: 4096).")
    ] = 0.0,
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Rank systems as FLARE does: ranks per case and metric, averaged; with bootstrap intervals and paired tests.

    Time and memory count where each folder holds efficiency/CASE/, written by `vlm evaluate efficiency -o`.
    """
    from eval import plots
    from eval.ranking import ALPHA, Ranking
    from eval.report.systems import ranking_page
    from eval.scores import read_scores

    scores = read_scores(results, True, tolerance_seconds, tolerance_mb)
    ranking = Ranking(scores, seed, resamples)
    plots.save_png(plots.places(ranking), out / "places.png")
    plots.save_png(plots.violins(plots.spread(ranking)), out / "scores.png")
    plots.save_png(plots.significance(ranking, list(scores.values), ALPHA), out / "significance.png")
    names = ("leaderboard.json", "leaderboard.csv", "leaderboard.md")
    _finish(ranking, out, as_json, names, ranking_page(ranking))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder that masks or answers wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same cases.")],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Folder for comparison.json, differences.csv, comparison.md and report.html."),
    ],
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Paired differences A - B of every metric, with 95 % intervals and p values."""
    from eval import comparison
    from eval.report.systems import comparison_page

    results = comparison.compare(first, second, seed, resamples)
    names = ("comparison.json", "differences.csv", "comparison.md")
    _finish(results, out, as_json, names, comparison_page(results))


@app.command(context_settings={"allow_interspersed_args": False})
def efficiency(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run and measure.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for efficiency.json, samples.csv, efficiency.md and .png."),
    ] = None,
    gpu: Annotated[int, typer.Option(help="NVML index of the GPU whose memory is read.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a command; report its wall time, peak memory and area under the memory-time curve. Exit code 1 if it failed.

    The command's standard output goes to standard error. Phases are shown when it is `vlm segment ... --report FILE`.
    """
    from eval.efficiency import measure

    results = measure(command, gpu)
    if out is not None:
        from eval import plots

        plots.save_png(plots.memory(results), out / "efficiency.png")
    _finish(results, out, as_json, ("efficiency.json", "samples.csv", "efficiency.md"))
    if results.exit_code != 0:
        print(f"error: the command ended with exit code {results.exit_code}", file=sys.stderr)
        raise typer.Exit(1)


def _finish(
    results: Results,
    out: Path | None,
    as_json: bool,
    names: tuple[str, str, str] | None = None,
    page: Page | None = None,
) -> None:
    """Write the three files, and the report where there is one, to a folder if it is given; then print the metrics or
    the tables."""
    from eval.results import FILES, metrics_json, write_results
    from eval.tables import show

    paths = write_results(results, out, names or FILES) if out is not None else []
    if out is not None and page is not None:
        from eval.report.page import write_page

        paths.append(write_page(page, out / "report.html"))
    if as_json:
        print(metrics_json(results), end="")
    else:
        show(results.tables())
    if paths:
        print(f"Wrote {', '.join(path.name for path in paths)} to {out}", file=sys.stderr)
