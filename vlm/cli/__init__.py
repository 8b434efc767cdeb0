"""The command `vlm`: one small file a verb, loaded when it is named, so that starting costs nothing.

A user's mistake is one line on stderr and exit code 2; a case that failed among others is exit code 1.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from seg_backbone.errors import InputError, InputErrors

VERBS = {
    "segment": "vlm.cli.segment:segment",
    "ask": "vlm.cli.ask:ask",
    "chat": "vlm.cli.chat:chat",
    "batch": "vlm.cli.batch:batch",
    "serve": "vlm.cli.serve:serve",
    "info": "vlm.cli.info:info",
    "evaluate": "vlm.cli.evaluate:app",
    "configure": "vlm.cli.configure:configure",
    "train": "vlm.cli.train:app",
    "data": "vlm.cli.data:app",
    "model": "vlm.cli.model:app",
}


class Verbs(TyperGroup):
    """The verbs above, each a function or a Typer app of its own."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb, imported; None for an unknown name."""
        if cmd_name not in VERBS:
            return None
        module, attribute = VERBS[cmd_name].split(":")
        found = getattr(import_module(module), attribute)
        holder = typer.Typer(rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=cmd_name)
        else:
            holder.command(cmd_name)(found)
        return get_group(holder).commands[cmd_name]


# plain help and plain tracebacks: rich alone would take longer to import than the help takes to print
app = typer.Typer(cls=Verbs, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def vlm() -> None:
    """Segment 3D CT and MR scans and answer questions about them, with the evidence."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does: what is being written is cleared away
    try:
        app(prog_name="vlm")
    except InputError as error:
        for one in error.errors if isinstance(error, InputErrors) else (error,):
            print(f"error: {' '.join(str(one).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a file that cannot be read or written
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(1)
