"""A language model of one's own as a judge: asked in words, read off the logits of its verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.data.prompts import chat_text
from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.folders import moved
from nlhf_zoo.llm.forward import forward
from nlhf_zoo.llm.loading import load_causal_lm, load_tokenizer
from nlhf_zoo.oracles.judge_prompt import FIELDS, JudgePrompt, Message, read_judge_prompt
from nlhf_zoo.oracles.sequence_scores import default_max_length
from nlhf_zoo.oracles.templates import Template, encode
from nlhf_zoo.oracles.verdicts.files import fingerprint
from nlhf_zoo.oracles.verdicts.ordered import OrderedJudge
from nlhf_zoo.oracles.verdicts.question import Question, Verdict
from nlhf_zoo.oracles.verdicts.store import VerdictStore
from nlhf_zoo.oracles.verdicts.verdicts import Record, Verdicts

__all__ = ["GenerativeModelOracle"]


class GenerativeModelOracle(OrderedJudge):
    """P(a > b | x) by a causal language model that is asked which response is better, in both orders.

    Q(a, b) = p(A) / (p(A) + p(B)), p the probability of the verdict's token as the answer's first; nothing is
    generated. A third verdict, a tie, counts one half.

    Args:
        model: transformers causal language model; the verdicts are computed on its device.
        tokenizer: its tokenizer; its chat template is used where it has one, and else the texts are put one
            below the other.
        prompt: the judge's instructions; those with a pattern of their own (`verdict`) let the judge reason
            first, which this oracle does not.
        max_length: in tokens; longer questions lose the prompt from the left, then the responses' ends.
        batch_size: questions a forward pass.
        store: where verdicts are kept; in memory, unless given.
        name: what the model is called in the file of verdicts: all that changes its answers besides the rest.

    Raises:
        BadInput: the verdicts cannot be told apart by their first token, or the instructions have a pattern.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompt: JudgePrompt | None = None,
        max_length: int | None = None,
        batch_size: int = 8,
        store: VerdictStore | None = None,
        name: str = "model",
    ) -> None:
        if batch_size < 1:
            raise BadInput(f"batch_size must be a whole number >= 1, got {batch_size}")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.prompt = read_judge_prompt(None) if prompt is None else prompt
        if self.prompt.verdict is not None:
            raise BadInput("generative_model reads the first token of the answer: give a template without verdict:")
        self.template = Template(_chat(tokenizer, self.prompt), FIELDS)
        self.max_length = max_length or default_max_length(model, tokenizer)
        self.verdict_tokens = _verdict_tokens(tokenizer, self.prompt)
        text = hashlib.sha256(self.template.text.encode()).hexdigest()
        identity = {"oracle": "generative_model", "name": name, "template": self.prompt.fingerprint, "text": text}
        self.verdicts = Verdicts(store or VerdictStore(None), {**identity, "max_length": self.max_length})

    @classmethod
    def load(
        cls,
        path: str,
        *,
        template: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        cache: str | None = None,
    ) -> GenerativeModelOracle:
        """From a folder or a hub id, in safetensors.

        Raises:
            BadInput: nothing usable there.
        """
        prompt = read_judge_prompt(template)
        tokenizer = load_tokenizer(path, trust_remote_code)
        model = load_causal_lm(path, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(
            moved(model, device).eval(),
            tokenizer,
            prompt=prompt,
            max_length=max_length,
            batch_size=batch_size,
            store=VerdictStore(cache),
            name=f"{fingerprint(path)} {model.dtype}",
        )

    def __repr__(self) -> str:
        return f"GenerativeModelOracle({type(self.model).__name__}, {self.verdicts.store!r})"

    @torch.no_grad()
    def ask(self, questions: Sequence[Question], record: Record) -> None:
        rows = [{name: getattr(question, name) for name in FIELDS} for question in questions]
        sequences = encode(self.tokenizer, self.template, rows, self.max_length)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
        training = self.model.training
        self.model.eval()
        try:
            for at in range(0, len(order), self.batch_size):
                chosen = order[at : at + self.batch_size]
                masses = self._masses([sequences[i] for i in chosen])
                record({questions[i]: self._verdict(row) for i, row in zip(chosen, masses, strict=True)})
        finally:
            self.model.train(training)

    def _masses(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence the probabilities of the verdicts, among themselves."""
        width = max(len(ids) for ids in sequences)
        tokens = torch.zeros(len(sequences), width, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(sequences):
            tokens[row, width - len(ids) :] = torch.as_tensor(ids)
            mask[row, width - len(ids) :] = 1
        device = self.model.device
        position = (mask.cumsum(-1) - 1).clamp_min(0)
        output = forward(self.model, tokens.to(device), mask.to(device), position.to(device), use_cache=False, keep=1)
        logits: Tensor = output.logits[:, -1].double()
        scores = [logits[:, tokens_of].logsumexp(-1) for tokens_of in self.verdict_tokens]
        return torch.stack(scores, -1).softmax(-1).tolist()

    def _verdict(self, masses: Sequence[float]) -> Verdict:
        value = self.prompt.value(masses)
        if value is None or value != value:
            raise BadInput("the judge's logits are not finite; load it with dtype=float32 or bfloat16")
        return Verdict(value)


def _chat(tokenizer: Any, prompt: JudgePrompt) -> str:
    """The question as a text with the fields in braces, up to where the judge's answer begins."""
    marks = {name: f"NLHF{name.upper()}MARK" for name in FIELDS}
    messages = prompt.messages(Question(marks["prompt"], marks["first"], marks["second"]))
    text = _rendered(tokenizer, messages).replace("{", "{{").replace("}", "}}")
    for name, mark in marks.items():
        text = text.replace(mark, f"{{{name}}}")
    return text


def _rendered(tokenizer: Any, messages: list[Message]) -> str:
    joined = "\n\n".join(message["content"].strip() for message in messages)
    if not getattr(tokenizer, "chat_template", None):
        return f"{joined}\n\nAnswer: "
    try:
        return chat_text(messages, tokenizer, add_generation_prompt=True)
    except BadInput:  # some templates know no system message
        return chat_text([{"role": "user", "content": joined}], tokenizer, add_generation_prompt=True)


def _verdict_tokens(tokenizer: Any, prompt: JudgePrompt) -> list[list[int]]:
    """For each verdict the tokens that an answer with it may begin with, with or without a space before it."""
    found: list[list[int]] = []
    for label in prompt.labels:
        spelt = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (label, f" {label}")]
        whole = [ids[0] for ids in spelt if len(ids) == 1]
        found.append(sorted({*(whole or [spelt[0][0]])}))
    tokens = [token for tokens_of in found for token in tokens_of]
    if len({*tokens}) < len(tokens):
        raise BadInput(
            f"the verdicts {', '.join(prompt.labels)} begin with the same token of this tokenizer; choose others"
        )
    return found
