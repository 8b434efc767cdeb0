"""`vlm evaluate`: scores of saved answers and saved masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eval.results import Results

app = typer.Typer(help="Score saved answers or masks against a reference.", no_args_is_help=True)

OutDir = Annotated[Path, typer.Option("-o", "--out", help="Folder for metrics.json, per_case.csv and table.md.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the metrics as JSON in place of the table.")]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap samples.")]


@app.command()
def answers(
    answers_file: Annotated[Path, typer.Argument(metavar="ANSWERS.jsonl", help="Answers, one JSON object a line.")],
    reference: Annotated[Path, typer.Option(help="Questions with their reference `answer`.")],
    out: OutDir,
    name: Annotated[str, typer.Option(help="What to call the answers in the table.")] = "model",
    compare: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Another answer file; repeatable.")
    ] = None,
    baseline_train: Annotated[
        Path | None, typer.Option(help="Training questions for a majority/median column (no scan seen).")
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Score answers per question type, with 95 % intervals over patients."""
    from eval.answers import evaluate_answers
    from seg_backbone.errors import ConfigError

    others: dict[str, str | Path] = {}
    for pair in compare or []:
        other, _, file = pair.partition("=")
        if not other or not file or other in others:
            raise ConfigError(
                "--compare", "NAME=FILE with a name of its own", repr(pair), "for example text-only=a.jsonl"
            )
        others[other] = Path(file)
    results = evaluate_answers(
        answers_file,
        reference,
        name=name,
        compare=others,
        baseline_train=baseline_train,
        seed=seed,
        resamples=resamples,
    )
    _finish(results, out, as_json)


@app.command()
def masks(
    pred_dir: Annotated[Path, typer.Argument(help="Predicted masks, CASE.nii.gz.")],
    ref_dir: Annotated[Path, typer.Argument(help="Reference masks of the same names.")],
    out: OutDir,
    protocol: Annotated[str, typer.Option(help="flare23, flare24, corrected or automsc.")] = "corrected",
    labels: Annotated[Path | None, typer.Option(help="Reference ids: dataset.json or name -> id JSON.")] = None,
    pred_labels: Annotated[
        Path | None, typer.Option(help="Prediction ids; default PRED_DIR/labels.json, else as the reference.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="manifest.jsonl with the classes annotated in each case; default the one beside REF_DIR."),
    ] = None,
    as_json: AsJson = False,
    seed: Seed = 0,
    resamples: Resamples = 1000,
) -> None:
    """Score a folder of masks: DSC and NSD per case and class."""
    from rich.console import Console
    from rich.progress import Progress

    from eval.segmentation import evaluate_masks, find_manifest, read_annotated
    from seg_backbone.labels import read_labels

    if manifest is None and protocol == "corrected":
        manifest = find_manifest(ref_dir)
        if manifest is not None:
            print(f"Annotated classes from {manifest}", file=sys.stderr)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("scoring", total=None)
        results = evaluate_masks(
            pred_dir,
            ref_dir,
            protocol,
            read_labels(labels) if labels else None,
            pred_labels=read_labels(pred_labels) if pred_labels else None,
            annotated=read_annotated(manifest, ref_dir) if manifest else None,
            progress=lambda done, total, case: bar.update(task, completed=done, total=total, description=case),
            seed=seed,
            resamples=resamples,
        )
    _finish(results, out, as_json)


def _finish(results: Results, out: Path, as_json: bool) -> None:
    """Write the three files, then print the metrics or the tables."""
    from eval.results import metrics_json, write_results
    from eval.tables import show

    paths = write_results(results, out)
    if as_json:
        print(metrics_json(results), end="")
    else:
        show(results.tables())
    print(f"Wrote {', '.join(path.name for path in paths)} to {out}", file=sys.stderr)
