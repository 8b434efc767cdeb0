"""Volume + question -> answer with evidence.

from vlm import Engine
engine = Engine.load("default")
scan = engine.open("scan.nii.gz")
answer = engine.ask(scan, "How many lesions are there?")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.infer.conversation import Conversation
    from vlm.infer.engine import Engine
    from vlm.schema import Answer, Question

__all__ = ["Answer", "Conversation", "Engine", "Question"]
_HOMES = {
    "Answer": "vlm.schema",
    "Conversation": "vlm.infer.conversation",
    "Engine": "vlm.infer.engine",
    "Question": "vlm.schema",
}


def __getattr__(name: str) -> Any:
    """Load the public names on first use: importing this package stays instant (no torch)."""
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
