"""What is judged: preference matrices, reference distributions and prompts, read from files."""

from nlhf_zoo.data.matrices import PreferenceMatrix, check_probabilities, counts_to_probabilities, read_matrix
from nlhf_zoo.data.pairs import LabelledPair, read_labelled_pairs
from nlhf_zoo.data.prompts import Prompt, read_prompts, render_prompts, transcript
from nlhf_zoo.data.references import read_reference

__all__ = [
    "LabelledPair",
    "PreferenceMatrix",
    "Prompt",
    "check_probabilities",
    "counts_to_probabilities",
    "read_labelled_pairs",
    "read_matrix",
    "read_prompts",
    "read_reference",
    "render_prompts",
    "transcript",
]
