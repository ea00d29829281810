"""What happens to a training on a signal to stop, and on a fault while it tests."""

from __future__ import annotations

import contextlib
import os
import signal

import paddle
import paddle.distributed as dist

from training import checkpoint, ranks
from training.command_line import Stopped


class EvaluationError(ValueError):
    """A fault of a test: the training itself is whole."""


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

    @staticmethod
    def stopped(number: int, step: int) -> Stopped:
        return Stopped(
            number,
            f"stopped by {signal.Signals(number).name} after step {step}, which is saved; "
            "go on by --resume_epoch latest",
        )


@contextlib.contextmanager
def stoppable(run):
    """On a signal, and on a fault of a test, the steps that are done are saved; then it ends."""
    with run.stop:
        try:
            yield
        except (Stopped, EvaluationError):
            checkpoint.save(run)
            ranks.barrier()  # once a rank has left, the launcher ends the one that saves
            raise
        except ValueError:  # perhaps the signal to stop ended the reading processes, too
            if not run.stop.received or dist.get_world_size() > 1:
                raise
            checkpoint.save(run)
            raise run.stop.stopped(run.stop.received, run.step) from None


@contextlib.contextmanager
def evaluation_errors():
    """What goes wrong within is an EvaluationError, with the same message."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise EvaluationError(str(error)) from error


def check_stopped(run) -> None:
    """Between a test's batches, of which ranks may have unequal numbers: those stop at a step.

    Raises:
        Stopped: this is the only process, and a signal came.
    """
    if run.stop.received and dist.get_world_size() == 1:
        raise run.stop.stopped(run.stop.received, run.step)
