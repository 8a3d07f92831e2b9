"""Who does the work: this process, several (joblib), or a cluster (Ray), all by the same few lines."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from nlhf_zoo.comparison.tasks import Done, Task
from nlhf_zoo.errors import BadInput

__all__ = ["attempt", "performed"]

_AHEAD = 2  # tasks handed out to a processor of a cluster before the first comes back


def attempt(task: Task) -> Done:
    """The task's outcome; what a solver raises is an outcome too, and ends nothing but this task.

    `lasting` says that it would be the same again: the input is refused, or a computation does not converge.
    """
    try:
        return task.perform()
    except BadInput as error:
        return Done({"error": _line(error), "lasting": task.refusals_last})
    except ArithmeticError as error:
        return Done({"error": _line(error), "lasting": True})
    except Exception as error:  # a plugin is foreign code
        return Done({"error": f"{type(error).__name__}: {_line(error)}", "lasting": False})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def performed(tasks: Sequence[Task], jobs: int = 1, cluster: str | None = None) -> Iterator[tuple[Task, Done]]:
    """Every task with its outcome, as they come; closing the iterator stops the workers.

    Raises:
        BadInput: Ray is not installed, or there is no cluster at the address.
    """
    outcomes: Generator[tuple[int, Done]]
    if cluster is not None:
        outcomes = _on_cluster(tasks, cluster)
    elif jobs > 1 and len(tasks) > 1:
        outcomes = _in_processes(tasks, jobs)
    else:
        outcomes = ((index, attempt(task)) for index, task in enumerate(tasks))
    with contextlib.closing(outcomes):
        for index, done in outcomes:
            yield tasks[index], done


def _numbered(index: int, task: Task) -> tuple[int, Done]:
    return index, attempt(task)


def _in_processes(tasks: Sequence[Task], jobs: int) -> Any:
    from joblib import Parallel, delayed, parallel_config

    # One thread a process: that many processes already keep the machine busy.
    with parallel_config(backend="loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=jobs, return_as="generator_unordered")
    return pool(delayed(_numbered)(index, task) for index, task in enumerate(tasks))


def _on_cluster(tasks: Sequence[Task], address: str) -> Generator[tuple[int, Done]]:
    try:
        import ray
    except ImportError:
        raise BadInput("--cluster needs Ray; install nlhf-zoo[cluster]") from None

    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BadInput(f"--cluster {address}: {_line(error)}") from None
    # A task whose node dies is done again elsewhere, however often.
    remote = ray.remote(max_retries=-1, num_cpus=1)(_numbered)
    waiting: dict[Any, int] = {}
    try:
        yield from _gathered(ray, remote, tasks, waiting)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _gathered(ray: Any, remote: Any, tasks: Sequence[Task], waiting: dict[Any, int]) -> Iterator[tuple[int, Done]]:
    todo = iter(range(len(tasks)))
    again: list[int] = []
    while True:
        room = int(max(1, ray.cluster_resources().get("CPU", 1))) * _AHEAD - len(waiting)
        for index in [*again, *_first(todo, room)]:
            waiting[remote.remote(index, tasks[index])] = index
        again = []
        if not waiting:
            return
        ready, _ = ray.wait(list(waiting), num_returns=1)
        for reference in ready:
            index = waiting.pop(reference)
            try:
                yield ray.get(reference)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError):
                again.append(index)  # the answer went down with its node before it was fetched


def _first(numbers: Iterable[int], count: int) -> Iterator[int]:
    for _, number in zip(range(count), numbers, strict=False):
        yield number
