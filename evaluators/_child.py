"""The child's side of a `Worker`: `python -m paredown.evaluators._child SETTINGS FD FD FD`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from ._jobs import ChildSettings, Job, Reply
from ._sessions import Sessions, step
from .measurement import EvaluationError


def main(arguments: list[str]) -> None:
    """Serve jobs until the parent is gone."""
    settings = ChildSettings.from_text(arguments[0])
    request_fd, reply_fd, lifeline_fd = map(int, arguments[1:])
    for fd in (request_fd, reply_fd, lifeline_fd):
        os.set_inheritable(fd, False)  # a linker that outlives us must not keep the pipes open
    _end_with_parent(lifeline_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(settings)
    sessions = Sessions()
    for name in settings.preload:
        with contextlib.suppress(EvaluationError):  # the job that needs it will tell
            sessions.prepare(name)
    _serve(sessions, Connection(request_fd, writable=False), Connection(reply_fd, readable=False))


def _end_with_parent(lifeline_fd: int) -> None:
    """Ask the kernel for SIGIO, which ends the process, as soon as the lifeline's far end closes.

    That needs no thread of Python, so it also ends a child that is stuck in native code with
    the interpreter lock held. `PR_SET_PDEATHSIG` would do that too, but it fires when the
    *thread* that started the child ends.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    closed_already = select.poll()
    closed_already.register(lifeline_fd, select.POLLHUP)
    if closed_already.poll(0):
        sys.exit(0)


def _limit(settings: ChildSettings) -> None:
    os.sched_setaffinity(0, settings.cpus)
    # Private writable memory. `RLIMIT_AS` would also count what compilers and allocators only
    # reserve, which is several times what they use.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = settings.memory_limit_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # If the machine as a whole runs out of memory, the kernel should take the candidate and
    # not the study.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _serve(sessions: Sessions, requests: Connection, replies: Connection) -> None:
    while True:
        try:
            job: Job[Any] = requests.recv()
        except EOFError:
            return
        value, error = None, None
        try:
            sessions.prepare(job.runtime)
            with step(job.title, "run"):
                value = job.run(sessions)
        except EvaluationError as failure:
            error = failure
        replies.send(Reply(value, error, _resident_bytes()))


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1:])
