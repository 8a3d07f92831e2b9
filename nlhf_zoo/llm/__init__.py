"""The language-model backend. Importing it imports torch, but no transformers."""

from nlhf_zoo.llm.enumeration import all_responses
from nlhf_zoo.llm.inner import InnerLoop, to_convergence
from nlhf_zoo.llm.objective import exact_objective, sampled_objective
from nlhf_zoo.llm.payoffs import exact_payoff
from nlhf_zoo.llm.policy import CausalLMPolicy, GeometricMixture, LanguagePolicy
from nlhf_zoo.llm.tokens import Decoding, PromptBatch, TokenResponses

__all__ = [
    "CausalLMPolicy",
    "Decoding",
    "GeometricMixture",
    "InnerLoop",
    "LanguagePolicy",
    "PromptBatch",
    "TokenResponses",
    "all_responses",
    "exact_objective",
    "exact_payoff",
    "sampled_objective",
    "to_convergence",
]
