"""The text around a scan's tokens, made by the language model's own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You answer questions about a 3D medical scan."
_SCAN, _QUESTION, _ANSWER = "<<scan>>", "<<question>>", "<<answer>>"


@dataclass(frozen=True)
class Prompt:
    """The pieces of a turn: `before` + scan tokens + `middle` + question + `after` + answer + `end`.

    before: token ids. middle, after, end: text. Question and answer are tokenised apart, so that the label span of an
    answer is exactly the ids that `answer` gives.
    """

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
    """Cut the chat template of `tokenizer` into its pieces.

    A template that refuses a system turn, or leaves it out, gets its text in the user's turn. An answer ends with what
    the template writes after one ("<end_of_turn>" of Gemma is not its end of text), or with the end of text where it
    writes nothing. A tokenizer without a template gets plain "Question: ... Answer:" lines.
    """
    before, middle, after, end = f"{SYSTEM}\n", "\nQuestion: ", "\nAnswer: ", tokenizer.eos_token or "\n"
    if tokenizer.chat_template:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{_SCAN}\n{_QUESTION}"}]
        try:
            text = _render(tokenizer, turns)
        except Exception:  # templates raise their own jinja errors for roles they do not know
            text = ""
        if SYSTEM not in text:
            turns = [{"role": "user", "content": f"{SYSTEM}\n{_SCAN}\n{_QUESTION}"}]
            text = _render(tokenizer, turns)
        before, rest = text.split(_SCAN)
        middle, after = rest.split(_QUESTION)
        whole = _render(tokenizer, [*turns, {"role": "assistant", "content": _ANSWER}], answered=True)
        end = whole.partition(_ANSWER)[2].rstrip() or end
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and not tokenizer.chat_template else []
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    return Prompt((*bos, *ids), middle, after, end, tokenizer)


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], answered: bool = False) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=not answered))
