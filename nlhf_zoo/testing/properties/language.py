"""The property that a table cannot show: the same solver object, on a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Itself, Solver, State
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import TabularPolicy
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Skip, Violation
from nlhf_zoo.testing.catalogue import named
from nlhf_zoo.testing.properties.conduct import PLAIN_GAME
from nlhf_zoo.testing.runs import Watch, begin, tables

if TYPE_CHECKING:
    from nlhf_zoo.llm import CausalLMPolicy

__all__ = ["language_model_agrees_with_table", "trains_batch_by_batch"]

PROMPT = ("is it so?",)


def _on_llm(solver: Solver) -> str | None:
    return None if "llm" in solver.backends else "the solver does not run on language models"


def _tiny() -> st.SearchStrategy[dict[str, Any]]:
    case = strategies.cases(sizes=(2, 3), kinds=strategies.MODERATE, low=0.5, high=2, deepest=0, steps=(2,))
    return st.fixed_dictionaries({"case": case, "seed": st.integers(0, 20)})


@named(lambda: st.fixed_dictionaries({"batches": st.sampled_from([1, 4])}), applies=_on_llm, share=0.06)
def trains_batch_by_batch(solver: Solver, batches: int) -> None:
    """`nlhf-zoo train` can hold what the solver remembers, and write it down after each update of so many batches.

    A run of three steps on empty networks. Updates must start at plain policies, and slots hold such, or averages of
    two; a mixture has no weights of its own.
    """
    from nlhf_zoo.training.networks import rehearse

    game = PLAIN_GAME.game()
    begin(solver, game, game.reference)
    try:
        for _ in rehearse(solver, game, batches):
            pass
    except BadInput as refusal:
        raise Violation(str(refusal)) from None


@named(_tiny, applies=_on_llm, share=0.06)
def language_model_agrees_with_table(solver: Solver, case: Case, seed: int) -> None:
    """A causal language model that can answer Y one-token responses visits the policies that the table visits.

    Reference and first policy are two small random models, read off as tables; each update's inner problem is
    brought to convergence by LBFGS with exact expectations; after each update KL(table || model) <= 1e-6.
    """
    reference, first = _model(case.size, 2 * seed), _model(case.size, 2 * seed + 1)
    responses = first.inner.responses  # type: ignore[union-attr]  # _model gives it one
    assert responses is not None

    def read(policy: Any) -> TabularPolicy:
        return TabularPolicy(policy.table(PROMPT, responses).detach())

    matrix = torch.tensor(case.matrix, dtype=torch.float64)
    oracle = MatrixOracle(matrix.unsqueeze(0), labels=responses.texts[0], prompts=PROMPT)
    on_table = Game(oracle, read(reference), case.beta)
    on_model = Game(oracle, reference, case.beta)
    mine, other = begin(solver, on_table, read(first)), begin(solver, on_model, first)
    watch = Watch(on_table)
    while mine.step < case.steps:
        watch(mine)
        update, asked = solver.propose(on_table, mine), solver.propose(on_model, other)
        if isinstance(update.opponent, Itself) and update.weight < 0.5:
            raise Skip("self-play by gradient is a contraction only for anchors of total weight 1/2 and more")
        mine = solver.accept(on_table, mine, update.start.improve(update, on_table))
        other = solver.accept(on_model, other, asked.start.improve(attrs.evolve(asked, steps=None), on_model))
        if float(tables(mine.current).amin()) < -6:
            raise Skip("plain gradients are slow where a response is nearly impossible")
        if (mine.step, mine.phase, set(mine.policies)) != (other.step, other.phase, set(other.policies)):
            raise Violation(f"the table is at {_place(mine)}, the language model at {_place(other)}")
        apart = float(kl_divergence(tables(mine.current), tables(read(other.current))).amax())
        if not apart <= 1e-6:
            raise Violation(
                f"step {mine.step}, phase {mine.phase}: on the table at {tables(mine.current).exp().tolist()},"
                f" on the language model at {tables(read(other.current)).exp().tolist()}"
            )


def _place(state: State) -> str:
    return f"step {state.step}, phase {state.phase}, with slots {sorted(state.policies)} and numbers {state.numbers}"


def _model(size: int, seed: int) -> CausalLMPolicy:
    """A small random Llama over `size` one-letter responses, in float64."""
    from nlhf_zoo.llm import CausalLMPolicy, Decoding, InnerLoop, all_responses, to_convergence
    from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama

    tokenizer = byte_tokenizer()
    letters = tuple(tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "abcdef"[:size])
    network = small_llama(tokenizer, hidden=16, layers=1, heads=2, seed=seed).double().requires_grad_(False)
    policy = CausalLMPolicy(network, tokenizer, Decoding(max_new_tokens=1, allowed_tokens=letters))
    inner = InnerLoop(PROMPT, steps=40, responses=all_responses(policy, 1), tolerance=1e-7, optimizer=to_convergence)
    return attrs.evolve(policy, inner=inner)
