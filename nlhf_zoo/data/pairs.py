"""Pairs of responses of which somebody has said which is better."""

from __future__ import annotations

from os import PathLike

import attrs

from nlhf_zoo.data.prompts import read_prompts, transcript
from nlhf_zoo.errors import BadInput

__all__ = ["LabelledPair", "read_labelled_pairs"]


@attrs.frozen
class LabelledPair:
    """A prompt as a judge reads it, the better response, and the worse one."""

    prompt: str
    chosen: str
    rejected: str


def read_labelled_pairs(source: str | PathLike[str], *, split: str = "train") -> list[LabelledPair]:
    """Rows with the columns prompt, chosen and rejected, from whatever `read_prompts` reads.

    Args:
        split: of a `datasets` source.

    Returns:
        At least one pair.

    Raises:
        BadInput: unreadable, a column missing, a response that is not a text, or equal to the other.
    """
    prompts, chosen, rejected = (
        read_prompts(source, column=column, split=split) for column in ("prompt", "chosen", "rejected")
    )
    pairs: list[LabelledPair] = []
    for number, (prompt, better, worse) in enumerate(zip(prompts, chosen, rejected, strict=True), start=1):
        if not isinstance(better, str) or not isinstance(worse, str):
            raise BadInput(f"{source}: pair {number}: chosen and rejected must be texts, the responses alone")
        if better == worse:
            raise BadInput(f"{source}: pair {number}: chosen and rejected are the same text; drop the row")
        pairs.append(LabelledPair(transcript(prompt), better, worse))
    return pairs
