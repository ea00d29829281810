"""A pipe between a benchmark and a process that it compares with: JSON lines there and back.

The process may have a Python of its own, without Paddle and most of what this project needs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def with_project() -> dict[str, str]:
    """The environment in which `python -m` finds this project's modules from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


class Peer:
    """Starts `python -m MODULE ...`, which has to call serve().

    Raises:
        ChildProcessError: it ended, or its first line has an "error".
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None):
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in end())
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**with_project(), **(environment or {})},
        )  # fmt: skip
        try:
            self.hello = self._answer()
            if "error" in self.hello:
                raise ChildProcessError(self.hello["error"])
        except BaseException:
            self.end()
            raise

    def ask(self, question: dict) -> dict:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["no message"])[-1]
            raise ChildProcessError(f"the process with {self.name} ended: {last}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            file.close()


def serve(start: Callable[[], tuple[dict, Callable[[dict], dict] | None]]) -> None:
    """The other process' side.

    start: gives what is said first, and the function that answers every question after that.
    """
    if sys.platform == "linux":  # stopped by a signal, it would not see that the benchmark is gone
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to the log
    try:
        hello, answer = start()
    except Exception as error:
        hello, answer = {"error": f"{type(error).__name__}: {error}"}, None
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin if answer else ():
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
