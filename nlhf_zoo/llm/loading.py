"""Models and tokenizers from the hub or a folder, in safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.adapters import quiet_peft
from nlhf_zoo.llm.places import require_place, similar_folders
from nlhf_zoo.plain import from_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_causal_lm", "load_in_4bit", "load_tokenizer"]

ADAPTER_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Of an adapter's folder, as peft calls them."""


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
    base, adapters = model, list[str]()
    while Path(base, ADAPTER_CONFIG).is_file():
        if base in adapters:
            raise BadInput(
                f"{what}: the adapter in {base} is its own base model; name a whole model in {ADAPTER_CONFIG}"
            )
        adapters.append(base)
        base = _base_of(base)
    loaded = _whole(base, what, dtype=dtype, trust_remote_code=trust_remote_code)
    for adapter in reversed(adapters):
        loaded = _with_adapter(loaded, adapter)
    return loaded


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


def _base_of(folder: str) -> str:
    file = Path(folder, ADAPTER_CONFIG)
    try:
        settings = from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"model: {file} is not json ({error}); save the adapter again") from None
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise BadInput(f"model: {file} names no base_model_name_or_path; write it in")
    if not Path(folder, WEIGHTS).is_file():
        # peft would go on to adapter_model.bin, a pickle.
        raise BadInput(f"model: the adapter in {folder} has no {WEIGHTS}; save it as safetensors")
    return base


def _with_adapter(below: PreTrainedModel, folder: str) -> PreTrainedModel:
    from peft import PeftModel

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
    require_place(what, source)
    try:
        return load()
    except Exception as error:  # a config made by anybody brings transformers and peft to raise anything
        there = Path(source).exists()
        hint = "; give a folder in transformers format" if there else similar_folders(source)
        hint = hint or "; give a folder, or a hub id that this machine can reach"
        first = str(error).strip().partition("\n")[0]
        reason = first if isinstance(error, OSError | ValueError) and first else f"{type(error).__name__}: {first}"
        raise BadInput(f"{what} {source!r} cannot be loaded ({reason}){hint}") from None
