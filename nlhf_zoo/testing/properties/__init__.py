"""Named properties: each a function `(solver, case, ...)` whose docstring states the mathematics.

They are plain functions, to be called by hand too: one returns nothing where the property holds, raises
`Violation` where it does not, and `Skip` where it says nothing about the case.
"""

from nlhf_zoo.testing.properties.conduct import (
    counts_every_query,
    declares_itself,
    depends_on_the_seed_alone,
    is_a_pure_function,
    leaks_nothing_between_games,
    leaves_its_inputs_untouched,
    resumes_in_the_middle,
    starts_at_the_given_policy,
    stays_normalised_and_finite,
    uses_no_hidden_randomness,
)
from nlhf_zoo.testing.properties.forms import (
    follows_its_formula,
    gradient_form_agrees_with_exact_form,
    loss_is_antisymmetric,
    works_in_double_precision,
)
from nlhf_zoo.testing.properties.language import language_model_agrees_with_table, trains_batch_by_batch
from nlhf_zoo.testing.properties.promises import (
    average_iterate_meets_its_bound,
    each_step_meets_its_recursion,
    last_iterate_meets_its_bound,
    reaches_its_target_in_the_limit,
    sampled_runs_meet_their_bound,
    target_is_a_fixed_point,
)
from nlhf_zoo.testing.properties.symmetry import (
    large_beta_gives_the_reference,
    payoffs_and_beta_scale_together,
    permuting_responses_permutes_the_result,
    plays_a_batch_as_its_games,
    stays_where_nobody_is_preferred,
    twins_share_their_mass,
)

__all__ = [
    "average_iterate_meets_its_bound",
    "counts_every_query",
    "declares_itself",
    "depends_on_the_seed_alone",
    "each_step_meets_its_recursion",
    "follows_its_formula",
    "gradient_form_agrees_with_exact_form",
    "is_a_pure_function",
    "language_model_agrees_with_table",
    "large_beta_gives_the_reference",
    "last_iterate_meets_its_bound",
    "leaks_nothing_between_games",
    "leaves_its_inputs_untouched",
    "loss_is_antisymmetric",
    "payoffs_and_beta_scale_together",
    "permuting_responses_permutes_the_result",
    "plays_a_batch_as_its_games",
    "reaches_its_target_in_the_limit",
    "resumes_in_the_middle",
    "sampled_runs_meet_their_bound",
    "starts_at_the_given_policy",
    "stays_normalised_and_finite",
    "stays_where_nobody_is_preferred",
    "target_is_a_fixed_point",
    "trains_batch_by_batch",
    "twins_share_their_mass",
    "uses_no_hidden_randomness",
    "works_in_double_precision",
]
