"""Who speaks while responses are drawn: one model whose every token stands, or a mixture that drafts and verifies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.mixing import mixed_log_probs
from nlhf_zoo.llm.speculative import DraftLength, settle

__all__ = ["Mixture", "Rules", "Speaker"]


@attrs.frozen(eq=False)
class Rules:
    """What holds for all who speak.

    Attributes:
        stop: (E,) ids that end a response.
    """

    max_new_tokens: int
    stop: Tensor
    padding: int
    temperature: float
    allowed: Tensor | None
    generator: torch.Generator | None

    def log_probs(self, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return mixed_log_probs(logits, weights, self.temperature, self.allowed)


@attrs.define(eq=False)
class Speaker:
    """R texts that one model goes on with: what it draws is said.

    Attributes:
        parts: the model, or the models of a mixture with the drafting one first, and their weights.
        tokens: (R, T) what was said.
        said: (R, T) bool, where.
        rows: (n,) which texts still go on.
        last: (n, 1) their last token, which is to be read next.
        position: (n, 1) its place in the text.
        lengths: (n,) tokens said.
    """

    rules: Rules
    parts: tuple[tuple[Any, float], ...]
    tokens: Tensor
    said: Tensor
    rows: Tensor
    last: Tensor
    position: Tensor
    lengths: Tensor

    @classmethod
    def after(cls, prompts: Tensor, mask: Tensor, rules: Rules, parts: tuple[tuple[Any, float], ...]) -> Speaker:
        """Begin behind (R, S) prompts, padded on the left."""
        tokens = prompts.new_full((len(prompts), rules.max_new_tokens), rules.padding)
        rows = torch.arange(len(prompts), device=prompts.device)
        position = mask.sum(-1, keepdim=True) - 1
        said = torch.zeros_like(tokens, dtype=torch.bool)
        return cls(rules, parts, tokens, said, rows, prompts[:, -1:], position, torch.zeros_like(rows))

    def draw(self, drawn: Tensor, logits: Tensor) -> Tensor:
        """Take (n, 1) tokens drawn by (n, V) logits; (n,) bool, which texts go on."""
        at = self.rows, self.lengths
        self.tokens[at], self.said[at] = drawn[:, 0], True
        self.last, self.position, self.lengths = drawn, self.position + 1, self.lengths + 1
        return ~torch.isin(drawn[:, 0], self.rules.stop) & (self.lengths < self.rules.max_new_tokens)

    def standing(self, drawn: int) -> Tensor:
        """(n,) how many of the last `drawn` tokens count."""
        return torch.full_like(self.rows, drawn)

    def going(self) -> Tensor:
        """(n,) bool, which texts go on after what was verified."""
        return torch.ones_like(self.rows, dtype=torch.bool)

    def leave(self, going: Tensor) -> None:
        self.rows, self.lengths = self.rows[going], self.lengths[going]
        self.last, self.position = self.last[going], self.position[going]

    def spoken(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens and mask (B, K, T), T the longest response."""
        length = int(self.said.sum(-1).max())
        return self.tokens[:, :length].reshape(*shape, length), self.said[:, :length].reshape(*shape, length)


@attrs.define(eq=False)
class Mixture(Speaker):
    """R texts that several models go on with: what one of them draws is a draft until the others have read it.

    Attributes:
        drafts: tokens (n, 1), the (n, V) logits each was drawn by, and the (n, 1) token that each follows.
        heard: (n, k, V) logits of the verifying models, and their weights.
        verified: (n,) tokens that were said of the last drafts.
        ended: (n,) bool, whether that was all.
    """

    drafts: list[tuple[Tensor, Tensor, Tensor]] = attrs.field(factory=list)
    heard: list[tuple[Tensor, float]] = attrs.field(factory=list)
    verified: Tensor = attrs.field(init=False)
    ended: Tensor = attrs.field(init=False)

    @property
    def room(self) -> int:
        """How many tokens more the text may have that is the furthest behind."""
        return self.rules.max_new_tokens - int(self.lengths.min())

    def draw(self, drawn: Tensor, logits: Tensor) -> Tensor:
        self.drafts.append((drawn, logits, self.last))
        self.last, self.position = drawn, self.position + 1
        return torch.ones_like(self.rows, dtype=torch.bool)

    def to_verify(self) -> tuple[Tensor, Tensor]:
        """(n, k) tokens that the drafts follow, and their places."""
        back = torch.arange(len(self.drafts), 0, -1, device=self.last.device)
        return torch.cat([before for _, _, before in self.drafts], 1), self.position - back

    def hear(self, network: Any, logits: Tensor) -> None:
        """Take a model's (n, k, V) logits after the tokens `to_verify`."""
        self.heard.append((logits, next(weight for part, weight in self.parts if part is network)))

    def settle(self, length: DraftLength) -> None:
        """Say what stands of the drafts."""
        count = len(self.drafts)
        drafts = torch.cat([drawn for drawn, _, _ in self.drafts], 1)
        logits = torch.stack([by for _, by, _ in self.drafts], 1)
        models, weights = zip((logits, self.parts[0][1]), *self.heard, strict=True)
        wanted = self.rules.log_probs(models, weights)
        tokens, accepted = settle(drafts, self.rules.log_probs([logits], [1.0]), wanted, self.rules.generator)
        length.saw(int(accepted.sum()), int((accepted < count).sum()))

        places = torch.arange(count, device=tokens.device)
        kept = torch.minimum((accepted + 1).clamp_max(count), self.rules.max_new_tokens - self.lengths)
        ends = torch.isin(tokens, self.rules.stop) & (places < kept[:, None])
        self.verified = torch.minimum(kept, torch.where(ends, places + 1, count).amin(-1))
        row, place = torch.nonzero(places < self.verified[:, None], as_tuple=True)
        at = self.rows[row], self.lengths[row] + place
        self.tokens[at], self.said[at] = tokens[row, place], True
        self.lengths = self.lengths + self.verified
        self.ended = ends.any(-1) | (self.lengths == self.rules.max_new_tokens)
        self.last = tokens.gather(1, self.verified[:, None] - 1)
        self.position = self.position - count + self.verified[:, None]
        self.drafts, self.heard = [], []

    def standing(self, drawn: int) -> Tensor:
        return self.verified

    def going(self) -> Tensor:
        return ~self.ended
