"""Runs of the command line that get a signal, SIGKILL unless told, at a chosen stage of their work or a chosen moment.

Processes are forked from a server that has the libraries loaded already, so that a killed run costs a second and not
ten; what runs in them is `nlhf_zoo.cli.main`, as in any other.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import attrs

__all__ = ["STAGES", "Stage", "kill_at", "kill_when", "run_whole"]

KILLED = -signal.SIGKILL
_PRELOADED = [
    "nlhf_zoo.cli.main",
    "nlhf_zoo.cli.train",
    "nlhf_zoo.training.run",
    "nlhf_zoo.oracles.callable",
    "jsonargparse",
    "transformers.models.llama.modeling_llama",
    "tests.kills",
    "tests.tiny_training",
    *(plugin.value for plugin in entry_points(group="nlhf_zoo")),
]
"""Whatever a run would import: each imports half a second's worth otherwise."""


@attrs.frozen
class Stage:
    """A call in which a process dies.

    Attributes:
        module, name: the function or method, "Class.method" for the latter.
        when: "before" or "after" the call; "half way" writes half of what `torch.save` would, then dies.
        ending: only calls count whose first or second argument, a path, ends so.
    """

    module: str
    name: str
    when: str = "before"
    ending: str = ""


STAGES = {
    "generate": Stage("nlhf_zoo.llm.builtin_engine", "BuiltinEngine.generate", "after"),
    "judge, before the verdict": Stage("nlhf_zoo.llm.judging", "Judging._ask"),
    "judge, verdict unused": Stage("nlhf_zoo.llm.judging", "Judging._ask", "after"),
    "backward": Stage("torch", "Tensor.backward", "after"),
    "optimizer": Stage("torch.optim", "AdamW.step", "after"),
    "checkpoint, half written": Stage("torch", "save", "half way"),
    "checkpoint, not in its place": Stage("pathlib", "Path.replace", "before", ".ckpt"),
    "checkpoint, older not removed": Stage("pathlib", "Path.replace", "after", ".ckpt"),
}


def kill_at(argv: Sequence[str], stage: Stage, count: int, log: Path, signum: int = signal.SIGKILL) -> int:
    """Run until the `count`-th call of a stage, which sends the signal; the exit code, `KILLED` if it died there."""
    return _ended(_started(argv, log, stage, count, signum))


def kill_when(
    argv: Sequence[str], ready: Callable[[], bool], delay: float, log: Path, *signums: int, apart: float = 0.0
) -> int:
    """Run, and kill from outside `delay` seconds after `ready`, or send these signals one after the other; its code."""
    process = _started(argv, log)
    while process.is_alive() and not ready():
        time.sleep(0.002)
    time.sleep(delay)
    for signum in signums or (signal.SIGKILL,):
        assert process.pid is not None
        os.kill(process.pid, signum)
        time.sleep(apart)
    return _ended(process)


def run_whole(argv: Sequence[str], log: Path) -> int:
    """Run to the end; the exit code."""
    return _ended(_started(argv, log))


def _started(
    argv: Sequence[str], log: Path, stage: Stage | None = None, count: int = 0, signum: int = signal.SIGKILL
) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # The server has the environment of when it began; a run sees that of now.
    process = context.Process(target=_command, args=(list(argv), str(log), stage, count, signum, dict(os.environ)))
    process.start()
    return process


def _ended(process: ForkServerProcess) -> int:
    process.join(200)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the run neither ended nor died")
    return process.exitcode


def _command(
    argv: list[str], log: str, stage: Stage | None, count: int, signum: int, environment: dict[str, str]
) -> None:
    import torch

    from nlhf_zoo.cli.main import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    if stage is not None:
        _lay(stage, count, signum)
    with Path(log).open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = main(argv)
    sys.exit(code)


def _lay(stage: Stage, count: int, signum: int) -> None:
    """Wrap the stage's function, so that its `count`-th call sends the signal to the process."""
    owner: Any = importlib.import_module(stage.module)
    *parents, name = stage.name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, left = getattr(owner, name), count

    def wired(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= any(str(arg).endswith(stage.ending) for arg in args[:2])
        if left:
            return original(*args, **kwargs)
        if stage.when == "after":
            answer = original(*args, **kwargs)
            os.kill(os.getpid(), signum)
            return answer
        if stage.when == "half way":
            whole = io.BytesIO()
            original(args[0], whole)
            args[1].write(whole.getvalue()[: whole.tell() // 2])
            args[1].flush()
        os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, name, wired)
