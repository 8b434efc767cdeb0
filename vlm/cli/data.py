"""`vlm data`: questions from annotated datasets, and checks of datasets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make questions from annotated scans; check datasets.", no_args_is_help=True)

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
    include_open: Annotated[
        bool, typer.Option("--open", help="Also open and off-topic questions, unanswered.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Write questions with answers measured on the reference masks.

    `image` is relative to DATASET; with several datasets, to the folder that holds them.
    """
    import json
    from collections import Counter

    from seg_backbone.cases import read_split
    from seg_backbone.errors import ConfigError
    from seg_backbone.io import replacing
    from vlm.data.questions import generate

    folders = [folder.resolve() for folder in folders]
    if len({folder.parent for folder in folders}) > 1:
        raise ConfigError("DATASET", "datasets of one parent folder", "several parents", "run once for each")
    source = config or (CONFIG if CONFIG.is_file() else None)
    counts: Counter[str] = Counter()
    with _bar("asking") as progress, replacing(out) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for question in generate(
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
        ):
            counts[str(question.type)] += 1
            lines.write(json.dumps(question.to_json(), ensure_ascii=False) + "\n")
    base = folders[0] if len(folders) == 1 else folders[0].parent
    if as_json:
        print(json.dumps({"questions": counts.total(), "by_type": dict(counts), "images_relative_to": str(base)}))
    else:
        print(", ".join(f"{number} {kind}" for kind, number in counts.most_common()) or "no questions")
        print(f"Wrote {counts.total()} questions to {out}; images are relative to {base}", file=sys.stderr)


@app.command()
def check(folder: Annotated[Path, typer.Argument(metavar="DATASET", help="An nnU-Net raw folder.")]) -> None:
    """List the faults of a dataset, one a line; exit code 2 where there are any."""
    from vlm.data.check import find_faults

    with _bar("checking") as progress:
        faults = find_faults(folder.resolve(), progress)
    for fault in faults:
        print(fault)
    if faults:
        raise typer.Exit(2)
    print(f"No faults in {folder}", file=sys.stderr)


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
        yield lambda done, total, case: bar.update(task, completed=done, total=total, description=f"{what} {case}")
