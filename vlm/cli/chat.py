"""`vlm chat [SCAN]`: a conversation with a scan. Streams, understands follow-ups and /commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

HELP = """/open FILE   another scan
/findings    what was found
/json        switch between text and JSON answers
/reset       forget the questions asked so far
/save DIR    mask, overlay and the conversation
/help        this list
/quit        leave (Ctrl-D too)"""


def chat(
    scan: Annotated[
        Path | None, typer.Argument(help="NIfTI, NRRD or MetaImage file, DICOM folder or zip; /open FILE later")
    ] = None,
    model: Annotated[str, typer.Option(help="a model that ships, or a folder")] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    modality: Annotated[str | None, typer.Option(help="CT or MR; guessed without it")] = None,
) -> None:
    """Talk with a scan. Piped input works too: one question a line."""
    from seg_backbone.errors import InputError
    from seg_backbone.io import read_volume
    from vlm.cli.show import evidence_lines, print_answer, save_answer, write_json
    from vlm.infer.conversation import Conversation
    from vlm.infer.engine import Engine
    from vlm.schema import Answer

    first = read_volume(scan, modality) if scan else None
    interactive = sys.stdin.isatty()
    engine = Engine.load(model, device)
    talk = Conversation(engine, engine.open(first)) if first else None
    as_json = False
    if interactive:
        typer.echo(f"{scan or 'No scan yet: /open FILE'}. Ask, or /help.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        command, _, rest = line.partition(" ")
        try:
            if not line:
                continue
            if command in ("/quit", "/exit"):
                break
            if command == "/help":
                typer.echo(HELP)
            elif command == "/open":
                talk = Conversation(engine, engine.open(read_volume(Path(rest.strip()).expanduser(), modality)))
                typer.echo(f"opened {rest.strip()}")
            elif command == "/json":
                as_json = not as_json
                typer.echo(f"JSON answers {'on' if as_json else 'off'}")
            elif talk is None:
                typer.echo("No scan yet: /open FILE")
            elif command == "/reset":
                talk.reset()
                typer.echo("Starting afresh.")
            elif command == "/save":
                if not talk.turns:
                    typer.echo("Nothing asked yet.")
                    continue
                folder = Path(rest.strip() or "chat").expanduser()
                save_answer(talk.scan, talk.turns[-1].answer, folder)
                write_json([turn.to_json() for turn in talk.turns], folder / "history.json")
                typer.echo(f"saved to {folder}")
            elif command.startswith("/") and command != "/findings":
                typer.echo(f"Unknown command {command}; /help lists them.")
            else:
                question = "Describe the findings." if command == "/findings" else line
                for piece in talk.stream(question):
                    if not isinstance(piece, Answer):
                        if not as_json:
                            typer.echo(piece, nl=False)
                    elif as_json:
                        print_answer(piece, True)
                    else:
                        typer.echo("".join(f"\n  {text}" for text in evidence_lines(piece)))
        except InputError as error:
            typer.echo(f"error: {error}", err=True)
        except KeyboardInterrupt:
            typer.echo("\nstopped")
