"""Who speaks while responses are drawn: one model whose every token stands, or a mixture that drafts and verifies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.mixing import mixed_log_probs
from nlhf_zoo.llm.speculative import LONGEST, DraftLength, settle

__all__ = ["FEW", "Mixture", "Rules", "Speaker"]

FEW = 16
"""Rows that are read on together though half of them have ended: on an accelerator, fewer take as long."""


@attrs.frozen(eq=False)
class Rules:
    """What holds for all who speak.

    Attributes:
        stop: (E,) ids that end a response.
        patience: 0 for rows that leave as soon as they have ended; else tokens from one look to the next, for each of
            which the host waits for the device. Rows stay in between, and leave by halves.
        broken: () bool, whether a token was drawn from no distribution; written with patience only.
    """

    max_new_tokens: int
    stop: Tensor
    padding: int
    temperature: float
    allowed: Tensor | None
    generator: torch.Generator | None
    patience: int = 0
    broken: Tensor = attrs.field(
        init=False,
        default=attrs.Factory(lambda rules: torch.zeros((), dtype=torch.bool, device=rules.stop.device), True),
    )

    def log_probs(self, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return mixed_log_probs(logits, weights, self.temperature, self.allowed)

    def draw(self, logits: Tensor) -> Tensor:
        """(n, 1) tokens by (n, V) logits."""
        chances = self.log_probs([logits], [1.0]).exp()
        if not self.patience:
            return torch.multinomial(chances, 1, generator=self.generator)
        # The same draw as multinomial's, without its checks, for which the host would wait.
        chances /= torch.empty_like(chances).exponential_(generator=self.generator)
        drawn = chances.argmax(-1, keepdim=True)
        self.broken.logical_or_(chances.gather(1, drawn).isnan().any())
        return drawn

    def ends(self, tokens: Tensor) -> Tensor:
        """Bool, which tokens end a response."""
        return (tokens[..., None] == self.stop).any(-1)

    def check(self) -> None:
        """Raises:
        RuntimeError: a token was drawn from what is no distribution, as multinomial says it where it checks.
        """
        if self.patience and bool(self.broken):
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")


@attrs.define(eq=False)
class Speaker:
    """R texts that one model goes on with: what it draws is said.

    Attributes:
        parts: the model, or the models of a mixture with the drafting one first, and their weights.
        tokens: (R, T + LONGEST) what was said, and behind it what does not count.
        said: (R, T + LONGEST) bool, where.
        rows: (n,) which texts are read on.
        last: (n, 1) their last token, which is to be read next.
        position: (n, 1) its place in the text.
        lengths: (n,) tokens said.
        ended: (n,) bool, whether that is all; what is drawn for such a text, while it stays, does not count.
        drawn: tokens drawn for each text, ended or not.
    """

    rules: Rules
    parts: tuple[tuple[Any, float], ...]
    tokens: Tensor
    said: Tensor
    rows: Tensor
    last: Tensor
    position: Tensor
    lengths: Tensor
    ended: Tensor
    drawn: int = 0

    @classmethod
    def after(cls, prompts: Tensor, mask: Tensor, rules: Rules, parts: tuple[tuple[Any, float], ...]) -> Speaker:
        """Begin behind (R, S) prompts, padded on the left."""
        tokens = prompts.new_full((len(prompts), rules.max_new_tokens + LONGEST), rules.padding)
        rows = torch.arange(len(prompts), device=prompts.device)
        position = mask.sum(-1, keepdim=True) - 1
        said = torch.zeros_like(tokens, dtype=torch.bool)
        ended = torch.zeros_like(rows, dtype=torch.bool)
        return cls(rules, parts, tokens, said, rows, prompts[:, -1:], position, torch.zeros_like(rows), ended)

    def draw(self, drawn: Tensor, logits: Tensor) -> None:
        """Take (n, 1) tokens drawn by (n, V) logits."""
        going = ~self.ended
        at = self.rows, self.lengths
        self.tokens[at], self.said[at] = drawn[:, 0], going
        self.last, self.drawn = drawn, self.drawn + 1
        self.position, self.lengths = self.position + going[:, None], self.lengths + going
        self.ended = self.ended | self.rules.ends(drawn[:, 0]) | (self.lengths == self.rules.max_new_tokens)

    def after_a_token(self) -> Tensor | None:
        """(n,) bool, which texts are read on; `None` where it is known without a look that all are."""
        if not self.rules.patience:
            return ~self.ended
        if self.drawn >= self.rules.max_new_tokens:
            return torch.zeros_like(self.ended)
        if self.drawn % self.rules.patience:
            return None
        return self._by_halves(len(self.rows) - int(self.ended.sum()))

    def after_a_round(self) -> Tensor | None:
        """The same, when what was drafted has been verified."""
        return None

    def standing(self, drawn: int) -> Tensor:
        """(n,) how many of the last `drawn` tokens count."""
        return torch.full_like(self.rows, drawn)

    def leave(self, staying: Tensor | None) -> None:
        if staying is not None:
            self.rows, self.lengths, self.ended = self.rows[staying], self.lengths[staying], self.ended[staying]
            self.last, self.position = self.last[staying], self.position[staying]

    def spoken(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens and mask (B, K, T), T the longest response."""
        length = int(self.said.sum(-1).max())
        tokens, said = self.tokens[:, :length], self.said[:, :length]
        return tokens.masked_fill(~said, self.rules.padding).reshape(*shape, length), said.reshape(*shape, length)

    def _by_halves(self, going: int) -> Tensor | None:
        """Which rows stay, given how many have not ended: sizes come again, and a step captured at one serves them."""
        count = len(self.rows)
        if going == 0:
            return torch.zeros_like(self.ended)
        half = (count + 1) // 2
        if going > half or count <= FEW:
            return None
        stay = torch.zeros_like(self.ended)
        stay[self.ended.long().argsort(stable=True)[:half]] = True
        return stay


@attrs.define(eq=False)
class Mixture(Speaker):
    """R texts that several models go on with: what one of them draws is a draft until the others have read it.

    Attributes:
        drafts: tokens (n, 1), the (n, V) logits each was drawn by, and the (n, 1) token that each follows.
        heard: (n, k, V) logits of the verifying models, and their weights.
        verified: (n,) tokens that were said of the last drafts.
        stays: (n,) bool, which texts are read on, or `None` for all.
        shortest: tokens of the text that is the furthest behind.
    """

    drafts: list[tuple[Tensor, Tensor, Tensor]] = attrs.field(factory=list)
    heard: list[tuple[Tensor, float]] = attrs.field(factory=list)
    verified: Tensor = attrs.field(init=False)
    stays: Tensor | None = None
    shortest: int = 0

    @property
    def room(self) -> int:
        """How many tokens more the text may have that is the furthest behind."""
        return self.rules.max_new_tokens - self.shortest

    def draw(self, drawn: Tensor, logits: Tensor) -> None:
        self.drafts.append((drawn, logits, self.last))
        self.last, self.position = drawn, self.position + 1

    def after_a_token(self) -> Tensor | None:
        return None

    def after_a_round(self) -> Tensor | None:
        return self.stays

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

        most = self.rules.max_new_tokens
        places, was_going = torch.arange(count, device=tokens.device), ~self.ended
        kept = torch.minimum((accepted + 1).clamp_max(count), most - self.lengths)
        ends = self.rules.ends(tokens) & (places < kept[:, None])
        self.verified = torch.minimum(kept, torch.where(ends, places + 1, count).amin(-1)) * was_going
        at = self.rows[:, None], self.lengths[:, None] + places
        self.tokens[at], self.said[at] = tokens, places < self.verified[:, None]
        self.lengths = self.lengths + self.verified
        self.ended = self.ended | ends.any(-1) | (self.lengths == most)
        self.last = tokens.gather(1, (self.verified[:, None] - 1).clamp_min(0))
        self.position = self.position - count + self.verified[:, None]
        self.drafts, self.heard = [], []

        refused = (accepted < count) & was_going
        behind = self.lengths.masked_fill(self.ended, most).min()
        counts = [(accepted * was_going).sum(), refused.sum(), (~self.ended).sum(), behind]
        stood, fell, going, self.shortest = torch.stack(counts).tolist()  # the round's one look at the device
        length.saw(stood, fell)
        self.stays = self._by_halves(going) if self.rules.patience else ~self.ended

    def standing(self, drawn: int) -> Tensor:
        return self.verified
