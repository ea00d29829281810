"""A program as a process: signals to stop, its device, a command to paste."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import paddle
import paddle.distributed as dist

from training.command_line import WrongOption


class StopSignals:
    """SIGINT and SIGTERM while it is entered: noted; a second one ends the program at once.

    One that the program was started to ignore (SIGINT behind a script's `&`) stays ignored.

    (Not a rank of Paddle's launcher, which sends three, 0.2 s apart, and kills after 30 s.)
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = 0  # number of the signal that this process got
        self._asked: paddle.Tensor | None = None

    def __enter__(self) -> StopSignals:
        before = {number: signal.getsignal(number) for number in self.NUMBERS}
        self._before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.received = number
        if "PADDLE_TRAINER_ID" not in os.environ:  # Paddle's launcher repeats it, and then kills
            for each in self._before:
                signal.signal(each, signal.SIG_DFL)

    def agreed(self) -> int:
        """The signal on which all ranks stop now, 0 for none; to be asked once a step by all.

        Several ranks answer for the step before: by then a device has the answer ready.
        """
        if dist.get_world_size() == 1:
            return self.received
        asked, self._asked = self._asked, paddle.to_tensor([self.received], dtype="int64")
        dist.all_reduce(self._asked, dist.ReduceOp.MAX)
        return 0 if asked is None else int(asked[0])


def command(program: str, *options) -> str:
    """A line for the shell that runs a program of the project, from where the user is."""
    python = os.path.basename(sys.executable)
    if shutil.which(python) != sys.executable:
        python = _seen_from_here(sys.executable)
    path = _seen_from_here(os.path.join(os.path.dirname(os.path.dirname(__file__)), program))
    return shlex.join([python, path, *map(str, options)])


def _seen_from_here(path: str) -> str:
    here = os.path.join(os.getcwd(), "")
    return path[len(here) :] if path.startswith(here) else path


def gpu_there() -> bool:
    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def set_device(use_gpu: bool | None) -> None:
    if use_gpu and not gpu_there():
        why = "no GPU was found" if paddle.is_compiled_with_cuda() else "this Paddle is CPU-only"
        raise WrongOption(f"--use_gpu true, but {why}; use --use_gpu false")
    paddle.set_device("gpu" if use_gpu is not False and gpu_there() else "cpu")
