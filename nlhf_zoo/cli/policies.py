"""The policy that is trained, from its kind and KEY=VALUE pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nlhf_zoo.tabular import TabularPolicy

__all__ = ["PolicyKind", "check_policy_options", "parametrised"]

PolicyKind = Literal["table", "softmax", "log_linear", "mlp"]  # that of `tabular.kinds`, without its torch


def check_policy_options(kind: str, options: Mapping[str, Any]) -> None:
    """Pass where this kind has these options, and their values the right types.

    Raises:
        BadInput: it has not.
    """
    from nlhf_zoo.cli.flags import typed
    from nlhf_zoo.tabular.kinds import option_types

    typed(options, option_types(kind, options), f"--policy-set, {kind}")


def parametrised(kind: PolicyKind, options: Mapping[str, Any], reference: TabularPolicy, seed: int) -> TabularPolicy:
    """As `tabular.kinds.parametrised`, the types of the options checked."""
    from nlhf_zoo.tabular import kinds

    check_policy_options(kind, options)
    return kinds.parametrised(kind, options, reference, seed)
