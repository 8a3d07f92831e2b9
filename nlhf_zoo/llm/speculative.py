"""Exact sampling from a mixture by the drafts of one of its models (Leviathan et al., arXiv 2211.17192).

A token d ~ q is kept with probability min(1, m(d) / q(d)), and otherwise replaced by one from (m - q)+ normalised:
what comes out is distributed as m, whatever q.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

__all__ = ["LOGITS_HELD", "LONGEST", "DraftLength", "residual", "settle"]

LONGEST = 16
"""Tokens drafted between two verifications, at most."""

LOGITS_HELD = 2**25
"""Logits of one model's drafts that are held at a time, at most; verifying them takes about four times as many."""


def settle(drafts: Tensor, drafted: Tensor, wanted: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Verify drafts from left to right, to the first that is refused and replaced.

    Args:
        drafts: (N, k) tokens, the j-th drawn from `drafted[:, j]`.
        drafted, wanted: (N, k, V) normalised log-probabilities of the draft and of the wanted distribution, given the
            drafts before.

    Returns:
        Tokens (N, k), and (N,) how many drafts were accepted; tokens up to the first refused one, itself included,
        are drawn from the wanted distribution, and those behind it mean nothing.
    """
    count = drafts.shape[1]
    ratio = (wanted - drafted).gather(-1, drafts[..., None])[..., 0].exp()
    chance = torch.rand(drafts.shape, dtype=ratio.dtype, device=drafts.device, generator=generator)
    accepted = (chance < ratio).long().cumprod(-1).sum(-1)
    refused = torch.nonzero(accepted < count).flatten()
    if not len(refused):
        return drafts, accepted
    at = accepted[refused]
    tokens = drafts.clone()
    missing = residual(drafted[refused, at], wanted[refused, at])
    tokens[refused, at] = torch.multinomial(missing, 1, generator=generator)[:, 0]
    return tokens, accepted


def residual(drafted: Tensor, wanted: Tensor) -> Tensor:
    """(N, V) weights (m - q)+ of the token that replaces a refused one, not normalised, given log q and log m."""
    goal = wanted.exp()
    missing = (goal - drafted.exp()).clamp_min(0)
    # Where the two agree to the last digit, a draft is refused by rounding only.
    return torch.where(missing.sum(-1, keepdim=True) > 0, missing, goal)


@attrs.define
class DraftLength:
    """How many tokens to draft before the next verification: as many as give the most tokens a forward call.

    With drafts accepted at rate a, k + 1 calls give 1 + a + ... + a^(k-1) tokens. The rate is the one seen in this
    generation, so that draws depend on nothing outside of it.

    Attributes:
        most: tokens at a time; 1 is plain mixing.
    """

    most: int = LONGEST
    # What is believed before anything is seen, as if these had been.
    accepted: float = 15.0
    refused: float = 1.0

    def saw(self, accepted: int, refused: int) -> None:
        self.accepted += accepted
        self.refused += refused

    @property
    def tokens(self) -> int:
        rate = self.accepted / (self.accepted + self.refused)
        best, most, given = 1, 0.0, 0.0
        for k in range(1, self.most + 1):
            given += rate ** (k - 1)
            if given / (k + 1) > most:
                best, most = k, given / (k + 1)
        return best
