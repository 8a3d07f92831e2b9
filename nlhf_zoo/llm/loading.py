"""Models and tokenizers from the hub or a folder, in safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.adapters import quiet_peft
from nlhf_zoo.llm.places import require_place, similar_folders

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_causal_lm", "load_in_4bit", "load_tokenizer"]

ADAPTER_CONFIG = "adapter_config.json"


def load_causal_lm(
    model: str, *, dtype: torch.dtype | str = "auto", trust_remote_code: bool = False, what: str = "model"
) -> PreTrainedModel:
    """A causal language model; weights in pickle format are refused.

    A folder with a peft adapter is its base model (found through adapter_config.json) with the adapter merged in.

    Args:
        what: what it is called in messages.

    Raises:
        BadInput: it cannot be loaded; the message says why.
    """
    if Path(model, ADAPTER_CONFIG).is_file():
        return _with_adapter(model, dtype, trust_remote_code)
    return _whole(model, what, dtype=dtype, trust_remote_code=trust_remote_code)


def load_in_4bit(model: str, *, device: str, compute: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model with its linear layers in 4 bit (NF4, constants quantised too: Dettmers et al.,
    arXiv 2305.14314), to put adapters on.

    Args:
        device: where the weights are quantised, and stay.
        compute: dtype of the matrix products.

    Raises:
        BadInput: bitsandbytes is missing, or the model cannot be loaded; an adapter folder is refused.
    """
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("load_in_4bit needs bitsandbytes: pip install 'nlhf-zoo[quantised]', or leave load_in_4bit out")
    if Path(model, ADAPTER_CONFIG).is_file():
        raise BadInput(f"model: {model} is an adapter, which cannot be merged into 4-bit weights; give a whole model")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return _whole(
        model,
        "model",
        dtype=compute,
        trust_remote_code=trust_remote_code,
        quantization_config=nf4,
        device_map={"": device},
    )


def _whole(model: str, what: str, **options: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return _load(what, model, lambda: AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, **options))


def _with_adapter(folder: str, dtype: torch.dtype | str, trust_remote_code: bool) -> PreTrainedModel:
    from peft import PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    settings = json.loads(Path(folder, ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BadInput(f"model: {folder}/{ADAPTER_CONFIG} names no base_model_name_or_path; write it in")
    if not Path(folder, SAFETENSORS_WEIGHTS_NAME).is_file():
        # peft would go on to adapter_model.bin, a pickle.
        raise BadInput(f"model: the adapter in {folder} has no {SAFETENSORS_WEIGHTS_NAME}; save it as safetensors")
    below = load_causal_lm(base, dtype=dtype, trust_remote_code=trust_remote_code)
    with quiet_peft():
        merged = _load("adapter", folder, lambda: PeftModel.from_pretrained(below, folder).merge_and_unload())
    return merged.requires_grad_(True)


def load_tokenizer(tokenizer: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the left.

    Raises:
        BadInput: it cannot be loaded; the message says why.
    """
    from transformers import AutoTokenizer

    loaded = _load(
        "tokenizer",
        tokenizer,
        lambda: AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code, padding_side="left"),
    )
    return loaded


def _load(what: str, source: str, load: Any) -> Any:
    from safetensors import SafetensorError

    require_place(what, source)
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        there = Path(source).exists()
        hint = "; give a folder in transformers format" if there else similar_folders(source)
        hint = hint or "; give a folder, or a hub id that this machine can reach"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{what} {source!r} cannot be loaded ({reason}){hint}") from None
