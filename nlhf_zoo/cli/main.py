"""From the command line to a verb and back: what to run, where its answer goes, and the exit code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nlhf_zoo.errors import BadInput, Interrupted

if TYPE_CHECKING:
    from nlhf_zoo.cli.verb import Answer, Verb

__all__ = ["main"]

# Each is a module of this package that holds `VERB`; imported when asked for, for a quick start.
VERBS = ("list", "solve", "compare", "report", "train", "check", "new")

DONE, FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nlhf-zoo` with these arguments, those of the process unless given.

    Returns:
        0 done, 1 a check failed or a computation did not converge, 2 bad input (one line on stderr says
        which), 130 interrupted, 128 and its number for another signal after which work was kept.
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BadInput as error:
        return _fault(str(error), BAD_INPUT)
    except ArithmeticError as error:
        return _fault(str(error) or type(error).__name__, FAILED)
    except Interrupted as stop:
        return _fault(str(stop), stop.code)
    except KeyboardInterrupt:
        return _fault("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us has gone (`| head`); without this, Python complains once more when it closes stdout.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except SystemExit as stop:
        # Lightning turns Ctrl-C into an exit of its own.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _fault("interrupted", INTERRUPTED)
        return stop.code if isinstance(stop.code, int) else FAILED
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fault("out of memory; ask for less: fewer responses, a smaller model or batch", FAILED)
    except OSError as error:
        return _fault(f"{error.filename}: {error.strerror}" if error.filename else str(error), BAD_INPUT)


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    # torch says it by plain RuntimeErrors, of which only the words are different.
    words = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _fault(message: str, code: int) -> int:
    line = " ".join(message.split())
    print("nlhf-zoo:", "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return DONE if argv else BAD_INPUT
    if argv[0] == "--version":
        from importlib.metadata import version

        print("nlhf-zoo", version("nlhf-zoo"))
        return DONE
    if argv[0] not in VERBS:
        what = "flag" if argv[0].startswith("-") else "verb"
        near = difflib.get_close_matches(argv[0], [*VERBS, "--help", "--version"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(VERBS)}; see nlhf-zoo --help"
        raise BadInput(f"unknown {what} {argv[0]!r}; {hint}")
    return _answer(_verb(argv[0]), argv[1:])


def _answer(verb: Verb, argv: list[str]) -> int:
    from nlhf_zoo.cli.flags import read

    asked = read(verb, argv)
    if asked is None:
        return DONE
    # stdout belongs to the answer alone: whatever a library prints on the way goes to stderr.
    with contextlib.redirect_stdout(sys.stderr):
        answer = verb.run(asked.options)
    _print(answer, asked.json)
    return answer.code


def _print(answer: Answer, as_json: bool) -> None:
    if answer.silent:
        return
    from nlhf_zoo.plain import plain

    if as_json:
        print(json.dumps(plain(answer.document), indent=2, allow_nan=False))
    else:
        from nlhf_zoo.cli.terminal import console

        answer.show(console())


def _verb(name: str) -> Verb:
    return importlib.import_module(f"nlhf_zoo.cli.{name}").VERB


def _overview() -> str:
    lines = [
        "usage: nlhf-zoo VERB [--flag VALUE ...]",
        "",
        "Nash Learning from Human Feedback: solvers of preference games, exact on tables, trained on language models.",
        "",
        "verbs:",
        *(f"  {name:<8} {_verb(name).summary}" for name in VERBS),
        "",
        "options:",
        "  --help     this text; after a verb, that verb's options with an example",
        "  --version  the version",
        "",
        "Every verb takes --json: one JSON document on stdout, everything else on stderr.",
        "Exit codes: 0 done, 1 a check failed or a computation did not converge, 2 bad input,",
        "130 interrupted, 143 ended by SIGTERM.",
        "",
        "example:",
        "  nlhf-zoo solve --game rock_paper_scissors --solver nash_mp --beta 0.1 --steps 100",
    ]
    return "\n".join(lines) + "\n"
