"""Trained policies of the language of throws, measured over every response that there is: nothing is sampled.

A judge sees of a response its throw, its number of words and how many of them are of the prompt's throw: 40 kinds of
response or fewer a prompt. Payoffs are computed between kinds, distances and best responses over all responses.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.paper.throws import RESPONSE_TOKENS, Judge, split_prompts, throw_of, throws_of
from nlhf_zoo.interfaces import Game
from nlhf_zoo.metrics import duality_gap, kl_divergence
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import TabularPolicy, equilibrium

__all__ = ["Kinds", "Listed", "listed"]


@attrs.frozen(eq=False)
class Kinds:
    """What a judge tells apart among the responses to a prompt.

    Attributes:
        place: (Y,) the kind of each response.
        preference: (k, k) P(row's kind > column's).
    """

    place: Tensor
    preference: Tensor

    @classmethod
    def of(cls, judge: Judge, prompt: str, texts: tuple[str, ...]) -> Kinds:
        examples: dict[Any, str] = {}
        seen = [_seen(prompt, text) for text in texts]
        for kind, text in zip(seen, texts, strict=True):
            examples.setdefault(kind, text)
        order = {kind: at for at, kind in enumerate(examples)}
        rows = [[judge.preference(prompt, a, b) for b in examples.values()] for a in examples.values()]
        return cls(torch.tensor([order[kind] for kind in seen]), torch.tensor(rows, dtype=torch.float64))

    def shares(self, policy: Tensor) -> Tensor:
        """(k,) of (Y,) probabilities."""
        return torch.zeros(len(self.preference), dtype=policy.dtype).index_add(0, self.place, policy)

    def payoff(self, policy: Tensor) -> Tensor:
        """(Y,) P(each response > the policy)."""
        return (self.preference @ self.shares(policy))[self.place]


def _seen(prompt: str, text: str) -> tuple[int | None, int, int]:
    throws = throws_of(text)
    return throw_of(text), len(throws), throws.count(throws_of(prompt)[0])


@attrs.frozen(eq=False)
class Listed:
    """The held-out prompts, their reference and everything that can be answered.

    Attributes:
        responses: as `nlhf_zoo.llm.enumeration.all_responses` lists them, for one prompt.
        reference: (B, Y) log-probabilities.
    """

    responses: Any
    reference: Tensor

    @functools.lru_cache(maxsize=256)  # noqa: B019  # lives as long as a study
    def table(self, folder: Path) -> Tensor:
        """(B, Y) log-probabilities of the model in `folder`, float64."""
        return _table(_policy(folder), self.responses)

    @functools.lru_cache(maxsize=8)  # noqa: B019  # lives as long as a study
    def kinds(self, judge: Judge) -> tuple[Kinds, ...]:
        return tuple(Kinds.of(judge, prompt, self.responses.texts[0]) for prompt in split_prompts()[1])

    def measured(self, log_policy: Tensor, judge: Judge, beta: float) -> dict[str, float]:
        """Means over the prompts: gap (regularised, as `nlhf_zoo.metrics.duality_gap`), exploited (what the best
        response of all wins beyond 1/2), kl and win_rate against the reference."""
        payoff = torch.stack(
            [kinds.payoff(row.exp()) for kinds, row in zip(self.kinds(judge), log_policy, strict=True)]
        )
        return {
            "gap": float(duality_gap(payoff, log_policy, self.reference, beta).mean()),
            "exploited": float((payoff.amax(-1) - 0.5).mean()),
            "kl": float(kl_divergence(log_policy, self.reference).mean()),
            "win_rate": self.win_rate(log_policy, self.reference, judge),
        }

    def equilibrium(self, judge: Judge, beta: float) -> Tensor:
        """(B, Y) log-probabilities of the regularised equilibrium: found between kinds, since within a kind all
        payoffs are equal, and the reference's shares stay."""
        rows: list[Tensor] = []
        for kinds, reference in zip(self.kinds(judge), self.reference, strict=True):
            shares = kinds.shares(reference.exp()).log()
            found = equilibrium(Game(MatrixOracle(kinds.preference), TabularPolicy(shares), beta)).log_probs
            rows.append(reference + (found - shares)[kinds.place])
        return torch.stack(rows)

    def win_rate(self, first: Tensor, second: Tensor, judge: Judge) -> float:
        """P(first > second), the mean over prompts."""
        rows = zip(self.kinds(judge), first.exp(), second.exp(), strict=True)
        return float(torch.stack([a @ kinds.payoff(b) for kinds, a, b in rows]).mean())

    def throws(self, log_policy: Tensor) -> list[float]:
        """How often a response is each throw, the mean over prompts."""
        found = [throw_of(text) for text in self.responses.texts[0]]
        mean = log_policy.exp().mean(0)
        return [float(mean[torch.tensor([one == throw for one in found])].sum()) for throw in range(3)]


def listed(reference: Path) -> Listed:
    from nlhf_zoo.llm.enumeration import all_responses

    policy = _policy(reference)
    responses = all_responses(policy)
    return Listed(responses, _table(policy, responses))


def _policy(folder: Path) -> Any:
    from nlhf_zoo.llm import CausalLMPolicy
    from nlhf_zoo.llm.tokens import Decoding

    policy = CausalLMPolicy.from_pretrained(str(folder), dtype=torch.float32)
    tokens = tuple(range(len(policy.tokenizer)))
    decoding = Decoding(max_new_tokens=RESPONSE_TOKENS, max_prompt_tokens=8, allowed_tokens=tokens)
    return attrs.evolve(policy, decoding=decoding)


@torch.no_grad()
def _table(policy: Any, responses: Any) -> Tensor:
    """`policy.log_prob` of all responses: since they are all there are, one pass over their beginnings tells it."""
    tokens, mask = responses.tokens[0], responses.mask[0]
    going_on = [token for token in range(len(policy.tokenizer)) if token != policy.tokenizer.eos_token_id]
    begun = torch.tensor([*itertools.product(going_on, repeat=RESPONSE_TOKENS - 1)])
    digit = torch.zeros(len(policy.tokenizer), dtype=torch.int64)
    digit[going_on] = torch.arange(len(going_on))
    # What stands behind a response's last token does not matter, so that any beginning will do there.
    scale = len(going_on) ** torch.arange(RESPONSE_TOKENS - 2, -1, -1)
    row = (digit[tokens[:, :-1]] * mask[:, :-1] * scale).sum(-1)
    tables = []
    for prompt in policy.encode(split_prompts()[1]).tokens:
        logits = policy.network(torch.cat([prompt.expand(len(begun), -1), begun], dim=1)).logits
        after = logits[:, -RESPONSE_TOKENS:].double().log_softmax(-1)
        tables.append((after[row].gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * mask).sum(-1))
    return torch.stack(tables)
