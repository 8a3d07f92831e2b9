"""Policies on causal language models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import attrs
import torch
from torch import Tensor, nn

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Outcome, Policy, Update, weights_changed
from nlhf_zoo.llm.host import at_work
from nlhf_zoo.llm.scoring import score
from nlhf_zoo.llm.sharding import gathered
from nlhf_zoo.llm.tokens import (
    Decoding,
    PromptBatch,
    TokenResponses,
    decode,
    encode_prompts,
    encode_responses,
    ended,
    padding_id,
    stop_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from nlhf_zoo.llm.inner import InnerLoop

__all__ = ["CausalLMPolicy", "GeometricMixture", "LanguagePolicy", "as_language", "same_network", "sample_together"]


class LanguagePolicy(Policy):
    """A policy that answers texts: one causal LM, or a mixture of several.

    Attributes:
        tokenizer: shared by all models that play together.
        decoding: how responses are drawn, and what their log-probabilities mean.
    """

    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding

    @property
    def parts(self) -> tuple[tuple[Any, float], ...]:
        """Networks and their weights in the token-level geometric mixture; weights add up to 1."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.parts[0][0].device

    def encode(self, prompts: PromptBatch | Sequence[str]) -> PromptBatch:
        """Prompts as tokens on this policy's device; a `PromptBatch` passes through."""
        if isinstance(prompts, PromptBatch):
            return prompts.to(self.device)
        return encode_prompts(prompts, self.tokenizer, self.decoding, self.device)

    def sample(
        self, prompts: PromptBatch | Sequence[str], num_samples: int, generator: torch.Generator | None
    ) -> TokenResponses:
        return sample_together([self], prompts, num_samples, generator)[0]

    def log_prob(
        self, prompts: PromptBatch | Sequence[str], responses: TokenResponses | Sequence[Sequence[str]]
    ) -> Tensor:
        """(B, K) summed token log-probabilities, float32 (float64 for a float64 model); differentiable."""
        return self.token_log_prob(prompts, responses).sum(-1)

    def token_log_prob(
        self, prompts: PromptBatch | Sequence[str], responses: TokenResponses | Sequence[Sequence[str]]
    ) -> Tensor:
        """(B, K, T) log-probability of each response token, 0 on padding."""
        batch = self.encode(prompts)
        if not isinstance(responses, TokenResponses):
            responses = encode_responses(responses, self.tokenizer, self.decoding, self.device)
        with at_work(network for network, _ in self.parts):
            return score(
                self.parts,
                batch.tokens,
                batch.mask,
                responses.tokens,
                responses.mask,
                temperature=self.decoding.temperature,
                allowed=self._allowed(),
            )

    def table(self, prompts: PromptBatch | Sequence[str], responses: TokenResponses) -> Tensor:
        """(B, Y) log-probabilities over an enumerated response set, normalised over it."""
        return self.log_prob(prompts, responses).log_softmax(-1)

    def _allowed(self) -> Tensor | None:
        tokens = self.decoding.allowed_tokens
        if tokens is None:
            return None
        size = self.parts[0][0].config.vocab_size
        allowed = torch.zeros(size, dtype=torch.bool, device=self.device)
        allowed[list(tokens)] = True
        return allowed

    def mixture(self, other: Policy, weight: float) -> Policy:
        if not isinstance(other, LanguagePolicy):
            raise BadInput(f"a language model cannot mix with a {type(other).__name__}")
        if weight == 0:
            return self
        return other if weight == 1 else GeometricMixture(self, other, weight)


@attrs.frozen(eq=False)
class CausalLMPolicy(LanguagePolicy):
    """Any transformers causal language model as a policy.

    Attributes:
        network: the model; this policy never changes its weights.
        inner: how `improve` takes gradient steps; needed for `improve` only.
    """

    network: nn.Module
    tokenizer: PreTrainedTokenizerBase
    decoding: Decoding = attrs.field(factory=Decoding)
    inner: InnerLoop | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        tokenizer: str | None = None,
        decoding: Decoding | None = None,
        dtype: torch.dtype | str = "auto",
        trust_remote_code: bool = False,
    ) -> Self:
        """Load from a hub id or a local folder in transformers format (safetensors only, never pickle).

        Raises:
            BadInput: no such model or tokenizer, or not a causal language model.
        """
        from nlhf_zoo.llm.loading import load_causal_lm, load_tokenizer

        network = load_causal_lm(model, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(network, load_tokenizer(tokenizer or model, trust_remote_code), decoding or Decoding())

    @property
    def parts(self) -> tuple[tuple[Any, float], ...]:
        return ((self.network, 1.0),)

    def average(self, other: Policy, weight: float) -> CausalLMPolicy:
        if not isinstance(other, CausalLMPolicy):
            raise BadInput(f"parameters of a language model cannot be averaged with a {type(other).__name__}")
        network = copy.deepcopy(self.network)
        average_into(network, other.network, weight)
        return attrs.evolve(self, network=network)

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        """Gradient steps on a copy of the start's network, as `inner` says.

        Raises:
            BadInput: no `inner` loop was given.
        """
        if self.inner is None:
            raise BadInput("this policy has no inner loop; give CausalLMPolicy(inner=InnerLoop(prompts=...))")
        return self.inner.run(self, update, game, generator)


@torch.no_grad()
def average_into(network: nn.Module, other: nn.Module, weight: float) -> None:
    """network <- (1 - weight) network + weight other, parameters in place; buffers are copied."""
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        mine.lerp_(theirs.to(mine), weight)
    for mine, theirs in zip(network.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
    weights_changed(network)


@attrs.frozen(eq=False)
class GeometricMixture(LanguagePolicy):
    """first^(1 - weight) second^weight, mixed token by token (Munos et al., arXiv 2312.00886, section 7).

    `sample` and `log_prob` are those of the token-level mixture, the one that can be sampled; for responses
    of one token it is the sequence-level mixture of the theory, which `table` gives for any length over an
    enumerated response set.
    """

    first: LanguagePolicy
    second: LanguagePolicy
    weight: float

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:  # type: ignore[override]  # a property serves the attribute
        return self.first.tokenizer

    @property
    def decoding(self) -> Decoding:  # type: ignore[override]  # a property serves the attribute
        return self.first.decoding

    @property
    def parts(self) -> tuple[tuple[Any, float], ...]:
        merged: list[tuple[Any, float]] = []
        scaled = [(n, w * (1 - self.weight)) for n, w in self.first.parts]
        scaled += [(n, w * self.weight) for n, w in self.second.parts]
        for network, weight in scaled:
            for i, (other, old) in enumerate(merged):
                if other is network:
                    merged[i] = (other, old + weight)
                    break
            else:
                merged.append((network, weight))
        return tuple(merged)

    def table(self, prompts: PromptBatch | Sequence[str], responses: TokenResponses) -> Tensor:
        first, second = self.first.table(prompts, responses), self.second.table(prompts, responses)
        return ((1 - self.weight) * first + self.weight * second).log_softmax(-1)

    def average(self, other: Policy, weight: float) -> Policy:
        raise BadInput("a mixture of language models has no parameters of its own to average")

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        raise BadInput("a mixture of language models cannot be trained; start the update from one of its parts")


def sample_together(
    policies: Sequence[LanguagePolicy],
    prompts: PromptBatch | Sequence[str],
    num_samples: int,
    generator: torch.Generator | None,
) -> list[TokenResponses]:
    """`num_samples` responses of each policy to each prompt, all drawn in one pass.

    What costs is how often a model is called: one that speaks in several of the policies, as the student does beside
    its own mixture with the reference, is called once a token for all of them. The policies share tokenizer and
    decoding.
    """
    first = policies[0]
    batch = first.encode(prompts)
    networks = {id(network): network for policy in policies for network, _ in policy.parts}
    modes = [(network, network.training) for network in networks.values()]
    stop = stop_tokens(first.parts[0][0], first.tokenizer)
    for network, _ in modes:
        network.eval()
    try:
        with at_work(networks.values()), gathered(networks.values()):
            drawn = first.decoding.engine.generate(
                [policy.parts for policy in policies],
                batch.tokens,
                batch.mask,
                num_samples=num_samples,
                max_new_tokens=first.decoding.max_new_tokens,
                stop=stop,
                padding=padding_id(first.tokenizer),
                temperature=first.decoding.temperature,
                allowed=first._allowed(),
                generator=generator,
            )
    finally:
        for network, training in modes:
            network.train(training)
        # Autocast keeps the casts that it made without gradients, and would hand them to the training pass.
        torch.clear_autocast_cache()
    return [
        TokenResponses(
            one.tokens,
            one.mask,
            decode(one.tokens, one.mask, first.tokenizer),
            one.log_probs,
            ended(one.tokens, one.mask, stop),
        )
        for one in drawn
    ]


def as_language(policy: Policy) -> LanguagePolicy:
    """The same policy, known to be one on language models.

    Raises:
        BadInput: it is not.
    """
    if not isinstance(policy, LanguagePolicy):
        raise BadInput(f"a language model cannot play with a {type(policy).__name__}; give both the same backend")
    return policy


def same_network(policy: LanguagePolicy, other: LanguagePolicy) -> bool:
    """Whether the two are the same weights in memory."""
    parts, others = policy.parts, other.parts
    return len(parts) == len(others) == 1 and parts[0][0] is others[0][0]
