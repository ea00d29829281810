"""How a program begins and ends: types of options, errors of one line, Ctrl-C.

Nothing here needs Paddle, whose import takes a second or more: what is wrong with a command line is
said before.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import os
import signal
import sys
import time
import warnings
from typing import NoReturn

from readers.printable import printable

# Paddle's: about C++ extensions, at every import; and at the first step of every network with a
# BatchNorm, of which it is true.
for message in ("No ccache found", "When training, we now always track global mean"):
    warnings.filterwarnings("ignore", message=message)


def boolean(text: str) -> bool:
    """PaddleSlim's booleans take a value: `--use_gpu false`."""
    if text.lower() in ("true", "t", "yes", "y", "1"):
        return True
    if text.lower() in ("false", "f", "no", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")


def number(kind: type, minimum: float, maximum: float = float("inf"), part: bool = False):
    """An argparse type: an int or a finite float between two bounds, both included.

    part: it is a part of a whole, and may have been given in percent.
    """

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (minimum <= value <= maximum and abs(value) != float("inf")):
            limits = f">= {minimum}" if maximum == float("inf") else f"in [{minimum}, {maximum}]"
            what = "a whole number" if kind is int else "a number"
            percent = part and 2 <= value <= 100
            hint = f"; did you mean {value / 100:g}?" if percent else ""
            raise argparse.ArgumentTypeError(f"must be {what} {limits}, got {text}{hint}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    """Its errors are one line without the usage, and name the nearest option.

    Args:
        text: the description, shown as it is.
    """

    def __init__(self, text: str, **more):
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=text, formatter_class=form, **more)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            if not word.startswith("-"):
                self.error(f"{word!r} belongs to no option")
            names = [name[2:] for name in self._option_string_actions if name[:2] == "--"]
            found = nearest(word.lstrip("-"), names)
            hint = f"did you mean --{found}?" if found else "--help shows all"
            self.error(f"there is no option {word}: {hint}")
        return options

    def defaults(self) -> dict:
        return {action.dest: action.default for action in self._actions}

    def error(self, message: str) -> None:
        refuse(self.prog, message)


class WrongOption(ValueError):
    """Shown as those that the parser finds; all ranks meet it."""


def refuse_given(args: argparse.Namespace, defaults: dict, names: list[str], why: str) -> None:
    """Raises WrongOption: some of these options are not at their defaults."""
    others = [f"--{name}" for name in names if getattr(args, name) != defaults[name]]
    if others:
        raise WrongOption(f"{', '.join(others)}: {why}")


def refuse(program: str, message: str) -> NoReturn:
    """Ends the program with one line, also under Paddle's launcher, where all ranks meet the error.

    The launcher shows the output of its machine's first rank, and then once more that of the first
    rank which has failed. So the rank that prints is the last to leave: the launcher will end it.
    """
    prints = os.environ.get("PADDLE_LOCAL_RANK", "0") == "0"
    if prints:
        last_words(program, f"error: {message}")
    if os.environ.get("PADDLE_LOCAL_SIZE", "1") != "1":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(2))
        time.sleep(10 if prints else 1)
    sys.exit(2)


# What other programs call them, where the letters lead astray.
ALSO_KNOWN = {"learning_rate": "lr", "sparsity": "ratio", "weight_decay": "l2_decay"}


def nearest(word: str, words) -> str | None:
    if ALSO_KNOWN.get(word) in words:
        return ALSO_KNOWN[word]
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def last_words(program: str, message: str) -> None:
    """A line on stderr, whatever the message holds."""
    sys.stdout.flush()
    print(f"{program}: {printable(message)}", file=sys.stderr, flush=True)


def start(parse) -> argparse.Namespace:
    """To be called by a program before it imports Paddle.

    Args:
        parse: takes the words of the command line, and ends the program where they are wrong.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # where it is not ignored
        signal.signal(signal.SIGINT, _interrupted_early)
    try:
        return parse(sys.argv[1:])
    except WrongOption as error:
        refuse(os.path.basename(sys.argv[0]), str(error))


def _interrupted_early(*_) -> None:
    last_words(os.path.basename(sys.argv[0]), "interrupted")
    os._exit(130)  # an import would show a traceback, or go on


def one_line_errors(main):
    """A wrong input ends the program with one line on stderr and status 2, not with a traceback.

    With PRUNING_TRACEBACK=1 in the environment the traceback is shown.
    """

    @functools.wraps(main)
    def wrapped(argv=None, **more):
        if signal.getsignal(signal.SIGINT) is _interrupted_early:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        program = os.path.basename(sys.modules[main.__module__].__file__)
        try:
            return main(argv, **more)
        except WrongOption as error:
            refuse(program, str(error))
        except (ValueError, OSError, NotImplementedError, MemoryError) as error:
            if os.environ.get("PRUNING_TRACEBACK") == "1":
                raise
            message, status = " ".join(str(error).splitlines()) or repr(error), 2
            if isinstance(error, MemoryError):
                message = f"not enough memory: {message}"
            message = f"error: {message}"
        except KeyboardInterrupt:
            message, status = "interrupted", 130
        except Stopped as stopped:
            message, status = str(stopped), 128 + stopped.signal
        if "PADDLE_TRAINER_ID" in os.environ:
            # Another rank failed, too, and was quicker: Paddle's launcher, which ends the others
            # then, takes the status of one that leaves for its own.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        last_words(program, message)
        sys.exit(status)

    return wrapped


class Stopped(Exception):
    """The program was told to end by a signal."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number
