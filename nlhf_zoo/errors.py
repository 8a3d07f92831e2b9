"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class BadInput(ValueError):
    """What a person or a file gave is unusable; the message is one line: what, where, and the mend.

    The command line prints it without a traceback and exits with 2. Library callers may catch it as a
    `ValueError`.
    """
