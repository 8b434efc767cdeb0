"""Chat templates and label spans, for small tokenizers built in the style of four families of language models.

Each has its family's algorithm (byte-level BPE, or BPE with byte fallback and "▁" for blanks), special tokens and the
shape of its template: SmolLM2 and Qwen2 put in a system turn of their own where none is given, Gemma refuses one and
does not end a turn with its end of text, Llama trims contents and writes the beginning of the text itself.
"""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlm.prompts import SYSTEM, make_prompt

CHATML = (
    "{{% if messages[0]['role'] != 'system' %}}<|im_start|>system\n{default}<|im_end|>\n{{% endif %}}"
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] + '\n' + m['content'] }}}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
IGNORES_SYSTEM = "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['content'] }}]{% endif %}{% endfor %}"
WORDS = Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CORPUS = [SYSTEM, "How many tumours are there? Options: yes; no", "left parotid gland, 12.5 ml", "user system model"]


def byte_level(special: list[str], split: Regex | None, **tokens: str) -> PreTrainedTokenizerFast:
    """BPE over bytes, as of GPT-2 (without `split`), Qwen2 and Llama 3."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split:
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), bytes_only])
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(raw, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet), tokens)


def smollm2() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHATML.format(default="A helpful model.")
    return tokenizer


def qwen2() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(special, WORDS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML.format(default="A helpful assistant.")
    return tokenizer


def gemma() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[*special, *(f"<0x{n:02X}>" for n in range(256))])
    tokenizer = trained(raw, trainer, {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"})
    tokenizer.chat_template = GEMMA
    return tokenizer


def llama() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(special, WORDS, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    tokenizer.chat_template = LLAMA
    return tokenizer


def trained(raw: Tokenizer, trainer: trainers.BpeTrainer, tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, **tokens)


FAMILIES = {"smollm2": smollm2, "qwen2": qwen2, "gemma": gemma, "llama": llama}
ENDS = {"smollm2": "<|im_end|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>", "llama": "<|eot_id|>"}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, PreTrainedTokenizerFast]:
    return request.param, FAMILIES[request.param]()


def said(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("answer", ["yes", "left parotid gland", "12.5 ml", "2", "größer als 5 µl"])
def test_the_pieces_are_the_templates_text(family: tuple[str, PreTrainedTokenizerFast], answer: str) -> None:
    name, tokenizer = family
    prompt = make_prompt(tokenizer)
    ids = [*prompt.before, *prompt.question("How many?", ("yes", "no")), *prompt.answer(answer)]
    asked = "\nHow many?\nOptions: yes; no"
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
    if name == "gemma":
        turns = [{"role": "user", "content": f"{SYSTEM}\n{asked}"}]
    expected = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
    found = said(tokenizer, ids)
    if name in ("llama", "gemma"):  # their templates trim the start of a turn; there the scan's tokens stand
        expected = expected.replace("How many?", "\nHow many?", 1) if name == "llama" else expected
    assert found == expected.rstrip()


def test_the_label_span_is_the_answer_and_the_end_of_the_turn(family: tuple[str, PreTrainedTokenizerFast]) -> None:
    name, tokenizer = family
    prompt = make_prompt(tokenizer)
    for answer in ("yes", "right", "3 tumours", "x"):
        question, labels = prompt.question("Is it?"), prompt.answer(answer)
        assert said(tokenizer, labels) == answer + ENDS[name]
        assert labels[-1] == tokenizer.convert_tokens_to_ids(ENDS[name]), "one id ends the turn"
        assert said(tokenizer, labels[:-1]) == answer
        together = tokenizer(f"{prompt.middle}Is it?{prompt.after}{answer}{prompt.end}", add_special_tokens=False)
        assert question + labels == together["input_ids"], "cut where the tokenizer cuts"


def test_the_text_begins_once_and_no_system_turn_is_invented(family: tuple[str, PreTrainedTokenizerFast]) -> None:
    name, tokenizer = family
    prompt = make_prompt(tokenizer)
    start = said(tokenizer, list(prompt.before))
    assert start.count(SYSTEM) == 1 and "helpful" not in start
    if name in ("gemma", "llama"):
        assert prompt.before.count(tokenizer.bos_token_id) == 1 == prompt.before.index(tokenizer.bos_token_id) + 1
    assert tokenizer.bos_token_id not in prompt.answer("yes")


def test_a_template_that_leaves_the_system_turn_out(llama_without: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt(llama_without)
    text = said(llama_without, [*prompt.before, *prompt.question("Is it?"), *prompt.answer("no")])
    assert text == f"[{SYSTEM}\n\nIs it?]no]"


@pytest.fixture
def llama_without() -> PreTrainedTokenizerFast:
    tokenizer = llama()
    tokenizer.chat_template = IGNORES_SYSTEM
    return tokenizer


def test_without_a_template(llama_without: PreTrainedTokenizerFast) -> None:
    llama_without.chat_template = None
    prompt = make_prompt(llama_without)
    ids = [*prompt.before, *prompt.question("Is it?"), *prompt.answer("no")]
    assert said(llama_without, ids) == f"<|begin_of_text|>{SYSTEM}\n\nQuestion: Is it?\nAnswer: no<|end_of_text|>"
