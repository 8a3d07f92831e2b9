"""Verdicts that are kept: a file of them, and how judges ask only for what is not in it."""
