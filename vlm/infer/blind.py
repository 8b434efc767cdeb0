"""The language model alone: the same questions without the scan. The baseline that answers from images must beat."""

from __future__ import annotations

import time

import torch

from vlm.llm import DEFAULT_LLM, load_llm
from vlm.schema import Answer, Question

_HINTS = {
    "counting": "Answer with a whole number.",
    "measurement": "Answer with a number in {unit}.",
    "regression": "Answer with a number in {unit}.",
    "classification": "Answer with one of: {options}.",
    "multilabel": "Answer with those that apply, separated by semicolons: {options}.",
}


class BlindEngine:
    """Answers as text only; whoever scores it reads the number or option out of the text."""

    def __init__(self, name: str = DEFAULT_LLM, device: str = "cpu", most_tokens: int = 24) -> None:
        self.model, self.tokenizer = load_llm(name, device)
        self.name, self.most_tokens = name, most_tokens

    @torch.inference_mode()
    def ask(self, question: Question) -> Answer:
        """Greedy decoding of at most `most_tokens` tokens; without structured values, since none was measured."""
        started = time.perf_counter()
        hint = _HINTS.get(question.type or "", "Answer in one short sentence.")
        hint = hint.format(unit=question.unit or "mm", options="; ".join(question.options) or "yes; no")
        content = f"A question about a medical scan: {question.question}\n{hint}"
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        out = self.model.generate(**ids, max_new_tokens=self.most_tokens, do_sample=False)
        text = self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        kind = question.type or "open"
        return Answer(question.id, kind, text, seconds=time.perf_counter() - started, model=f"{self.name} (no image)")
