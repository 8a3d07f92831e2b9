"""Small tokenizers and Llamas made on the spot, from explicit seeds and without a download."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

__all__ = ["byte_tokenizer", "judge_from", "small_judge", "small_llama", "train_bpe_tokenizer"]

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: 256 + 3 tokens (<pad> 0, <bos> 1, <eos> 2), nothing to train, every text round-trips.

    Pads on the left; `tokenizer(text)` puts <bos> in front unless `add_special_tokens=False`. The chat
    template writes one line a turn, "role: content", and no <bos>.
    """
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *alphabet])}
    return _tokenizer(vocab=vocabulary, merges=[])


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens, padding and chat template of `byte_tokenizer`.

    Args:
        texts: what to learn the merges from; the same texts give the same tokenizer.
        vocab_size: upper limit of the vocabulary, at least 259 (all bytes and the special tokens).

    Raises:
        BadInput: `vocab_size` is too small.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < 259:
        raise BadInput(f"a byte-level vocabulary holds at least 259 tokens, got vocab_size={vocab_size}")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return _wrapped(trained)


def _tokenizer(**model: Any) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    built = Tokenizer(models.BPE(**model))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _wrapped(built)


def _wrapped(tokenizer: Any) -> PreTrainedTokenizerFast:
    from tokenizers import decoders, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, padding_side="left"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def small_llama(
    tokenizer: Any, *, hidden: int = 128, layers: int = 2, heads: int = 4, seed: int, max_positions: int = 1024
) -> LlamaForCausalLM:
    """A Llama with random weights, float32 on the CPU, embeddings tied, feed-forward width 8/3 of `hidden`.

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        hidden: width, a multiple of 2 * heads.
        seed: of the weights; global random state is left as it was.

    Raises:
        BadInput: `hidden` does not divide into heads of an even width.
    """
    from transformers import LlamaForCausalLM

    with _seeded(seed):
        return LlamaForCausalLM(_config(tokenizer, hidden, layers, heads, max_positions)).eval()


def small_judge(
    tokenizer: Any,
    *,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    seed: int,
    max_positions: int = 1024,
    dropout: float = 0.0,
) -> LlamaForSequenceClassification:
    """A Llama with one output, for a pairwise judge or a reward model; arguments as in `small_llama`.

    Args:
        dropout: of the attention weights, in [0, 1).
    """
    from transformers import LlamaForSequenceClassification

    config = _config(tokenizer, hidden, layers, heads, max_positions)
    config.num_labels, config.attention_dropout = 1, dropout
    with _seeded(seed):
        return LlamaForSequenceClassification(config).eval()


def judge_from(language_model: Any, *, seed: int, dropout: float = 0.0) -> Any:
    """A sequence classifier with one output that starts from a language model's weights (its head is new).

    Args:
        language_model: a transformers causal LM with an equal sequence classifier, such as a Llama.
        seed: of the new head; global random state is left as it was.
        dropout: of the attention weights, in [0, 1).
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    values = {**language_model.config.to_dict(), "num_labels": 1, "attention_dropout": dropout}
    model_type = values.pop("model_type")
    for names in ("id2label", "label2id"):
        values.pop(names, None)  # those of the language model say two labels
    with _seeded(seed):
        judge = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **values))
    judge.base_model.load_state_dict(language_model.base_model.state_dict())
    return judge.to(language_model.device).eval()


def _config(tokenizer: Any, hidden: int, layers: int, heads: int, max_positions: int) -> Any:
    from transformers import LlamaConfig

    if hidden % (2 * heads):
        raise BadInput(f"hidden={hidden} does not divide into {heads} heads of an even width")
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=-(-hidden * 8 // 3 // 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed every accelerator, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        yield
