"""The text around a scan's tokens, made by the language model's own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You answer questions about a 3D medical scan."
_SCAN, _QUESTION = "<<scan>>", "<<question>>"


@dataclass(frozen=True)
class Prompt:
    """Token ids of the pieces of a turn: `before` + scan tokens + `middle` + question + `after` + answer + `end`."""

    before: tuple[int, ...]
    middle: str
    after: str
    end: str
    tokenizer: PreTrainedTokenizerBase

    def question(self, text: str, options: tuple[str, ...] = ()) -> list[int]:
        """Ids from the end of the scan tokens to the place where the answer starts."""
        listed = f"\nOptions: {'; '.join(options)}" if options else ""
        return self._encode(f"{self.middle}{text.strip()}{listed}{self.after}")

    def answer(self, text: str) -> list[int]:
        """Ids of an answer, with the end of the turn."""
        return self._encode(text + self.end)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def make_prompt(tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Cut the chat template of `tokenizer` into its pieces; templates that refuse a system turn get it in the user's.

    A tokenizer without a template gets plain "Question: ... Answer:" lines.
    """
    before, middle, after, end = f"{SYSTEM}\n", "\nQuestion: ", "\nAnswer: ", tokenizer.eos_token or "\n"
    if tokenizer.chat_template:
        user = {"role": "user", "content": f"{_SCAN}\n{_QUESTION}"}
        try:
            text = _render(tokenizer, [{"role": "system", "content": SYSTEM}, user])
        except Exception:  # templates raise their own jinja errors for roles they do not know
            text = _render(tokenizer, [{"role": "user", "content": f"{SYSTEM}\n{_SCAN}\n{_QUESTION}"}])
        before, rest = text.split(_SCAN)
        middle, after = rest.split(_QUESTION)
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and not tokenizer.chat_template else []
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    return Prompt((*bos, *ids), middle, after, end, tokenizer)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
