"""Models and tokenizers from the hub or a folder, in safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_causal_lm", "load_tokenizer"]


def load_causal_lm(
    model: str, *, dtype: torch.dtype | str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model; weights in pickle format are refused.

    Raises:
        BadInput: it cannot be loaded; the message says why.
    """
    from transformers import AutoModelForCausalLM

    return _load(
        "model",
        model,
        lambda: AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        ),
    )


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

    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if Path(source).exists() or source.startswith((".", "/", "~")):
            hint = "give a folder in transformers format" if Path(source).exists() else "there is no such folder"
        else:
            hint = "give a folder, or a hub id that this machine can reach"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{what} {source!r} cannot be loaded ({reason}); {hint}") from None
