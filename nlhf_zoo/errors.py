"""What ends a command other than its answer: input that is wrong, and a signal."""


class BadInput(ValueError):
    """What a person or a file gave is unusable; the message is one line: what, where, and the mend.

    The command line prints it without a traceback and exits with 2. Library callers may catch it as a
    `ValueError`.
    """


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work, in good order; the message is one line: what is kept, and how to go on.

    Attributes:
        code: of the process: 128 and the signal's number, 143 for SIGTERM and 130 for Ctrl-C.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
