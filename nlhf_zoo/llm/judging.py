"""Asking the oracle about sampled responses: each unordered pair once, each coin from the run's own generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import Self

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, PreferenceOracle
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses

__all__ = ["Asked", "Judging", "self_play"]


@attrs.frozen(eq=False)
class Asked:
    """Questions that an oracle was asked, or is being asked.

    Attributes:
        probability: (N,) float64 P(first > second), once it is there.
        arranged: from (N,) answers to a tensor by prompt and response.
        by_coin: whether an answer is the outcome of a coin with that probability.
        handicap: (N,) float64 log-odds that the first has against it, or `None`.
    """

    probability: Future[Tensor]
    arranged: Callable[[Tensor], Tensor]
    by_coin: bool
    handicap: Tensor | None = None

    def answers(self, generator: torch.Generator | None) -> Tensor:
        """Wait for the answers, and throw the coins; what the oracle raised is raised here."""
        answer = self.probability.result()
        if self.handicap is not None:
            answer = _handicapped(answer, self.handicap)
        if self.by_coin:
            answer = torch.bernoulli(answer.cpu(), generator=_on_cpu(generator))
        return self.arranged(answer)


class Judging:
    """A game's oracle for the time of one step: asked at once or, where it `waits`, in one thread, in order.

    The thread changes nothing but the time: questions, their order and count are the same, coins are thrown by who
    reads the answers, and after an error nothing more is asked.
    """

    def __init__(self, game: Game) -> None:
        self._oracle = game.oracle
        self._thread = ThreadPoolExecutor(1, "nlhf_zoo_judge") if game.oracle.waits else None
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            # The call that is under way may be paid for, and is let finish.
            self._thread.shutdown(wait=True, cancel_futures=True)

    def self_play(self, prompts: PromptBatch, drawn: TokenResponses) -> Asked:
        """Each unordered pair of the K responses; arranged as (B, K, K) P(response i > response j)."""
        count = drawn.num_samples
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        rows = [(b, i, j) for b in range(len(prompts)) for i, j in pairs]
        cut = _cut(drawn)

        def arranged(answer: Tensor) -> Tensor:
            shape, device = (len(prompts), count, count), drawn.tokens.device
            judged = torch.full(shape, 0.5, dtype=torch.float64, device=device)
            b, i, j = torch.tensor(rows, device=device).T
            judged[b, i, j] = answer.to(device)
            judged[b, j, i] = 1 - judged[b, i, j]
            return judged

        return self._ask(
            [prompts.judged[b] for b, _, _ in rows],
            [drawn.texts[b][i] for b, i, _ in rows],
            [drawn.texts[b][j] for b, _, j in rows],
            arranged,
            self._handicap([(cut[b][i], cut[b][j]) for b, i, j in rows]),
        )

    def paired(self, prompts: PromptBatch, drawn: TokenResponses, answers: TokenResponses) -> Asked:
        """The k-th response against the opponent's k-th answer; arranged as (B, K)."""
        return self._ask(
            [text for text in prompts.judged for _ in range(drawn.num_samples)],
            [text for row in drawn.texts for text in row],
            [text for row in answers.texts for text in row],
            lambda answer: answer.to(drawn.tokens.device).reshape(len(prompts), -1),
            self._handicap(zip(chain(*_cut(drawn)), chain(*_cut(answers)), strict=True)),
        )

    def _handicap(self, cut: Iterable[tuple[bool, bool]]) -> Tensor | None:
        """(N,) log-odds against the first of each pair, of which these were cut off at the length limit."""
        penalty = self._oracle.unfinished_penalty
        if not penalty:
            return None
        against = {(True, False): penalty, (False, True): -penalty}
        return torch.tensor([against.get(pair, 0.0) for pair in cut], dtype=torch.float64)

    def _ask(
        self,
        prompts: list[str],
        first: list[str],
        second: list[str],
        arranged: Callable[[Tensor], Tensor],
        handicap: Tensor | None,
    ) -> Asked:
        if self._thread is None:
            probability: Future[Tensor] = Future()
            probability.set_result(_in_float32(self._oracle, prompts, first, second))
        else:
            probability = self._thread.submit(self._elsewhere, prompts, first, second)
        return Asked(probability, arranged, self._oracle.answers_by_coin, handicap)

    def _elsewhere(self, prompts: list[str], first: list[str], second: list[str]) -> Tensor:
        if self._failed:
            raise RuntimeError("an earlier question of this step failed")
        try:
            answer = _probability(self._oracle, prompts, first, second)
            if answer.dtype not in (torch.float32, torch.float64):
                raise BadInput(
                    f"{type(self._oracle).__name__} is asked beside a training in {answer.dtype} and answers in it;"
                    " give its tensors a dtype, such as torch.float64"
                )
            return answer.double()
        except BaseException:
            self._failed = True
            raise


def _cut(drawn: TokenResponses) -> list[list[bool]]:
    """B rows of K: which responses the length limit ended; none where that is not known."""
    if drawn.finished is None:
        return [[False] * drawn.num_samples for _ in drawn.texts]
    return (~drawn.finished).tolist()


def _handicapped(probability: Tensor, log_odds: Tensor) -> Tensor:
    """(N,) with so much taken from the log-odds; infinity leaves no chance, whatever the judge says."""
    odds = log_odds.to(probability.device)
    taken = torch.where(odds.isinf(), (odds < 0).double(), (probability.logit() - odds).sigmoid())
    return torch.where(odds == 0, probability, taken)  # to the last digit


def _in_float32(oracle: PreferenceOracle, prompts: list[str], first: list[str], second: list[str]) -> Tensor:
    """Judged in the precision that the oracle was loaded in, not in that of the training."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return _probability(oracle, prompts, first, second).double()
    finally:
        torch.set_default_dtype(default)


def _probability(oracle: PreferenceOracle, prompts: list[str], first: list[str], second: list[str]) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return oracle.probability(prompts, first, second)


def _on_cpu(generator: torch.Generator | None) -> torch.Generator | None:
    # A coin a pair is little work: it is drawn on the CPU, from a seed that the run's generator gives.
    if generator is None or generator.device.type == "cpu":
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))


def self_play(
    game: Game, prompts: PromptBatch, drawn: TokenResponses, generator: torch.Generator | None = None
) -> Tensor:
    """(B, K, K) P(response i > response j), each unordered pair asked once."""
    with Judging(game) as judging:
        return judging.self_play(prompts, drawn).answers(generator)
