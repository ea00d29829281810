"""The command lines that train and measure a saved run once more."""

from __future__ import annotations

from tasks import TASKS
from training import options as command_line
from training import pruning, resume
from training.command_line import Parser
from training.train_state import Saved


def given_options(saved: Saved) -> dict:
    """The saved options of train.py that a new training would not have by itself, by name.

    --resume_epoch latest is left out, as it began a new training or went on with this very one;
    after another one --pretrained_model is what the run went on from.

    Raises:
        ValueError: they are of no data set of this program.
    """
    options = {**resume.BEFORE, **saved.options}
    data = options.get("data")
    if data not in command_line.DATA:
        raise ValueError(
            f"{saved.folder} was trained on {data!r}, which is no data set of train.py"
        )
    usual = command_line.parse_training("", ["--data", data])
    resume.fill_in(usual, None)
    usual.num_classes = TASKS[data].num_classes(usual)
    gmp = options.get("pruning_strategy") == "gmp"
    for name, density in pruning.GMP_DENSITIES.items():
        setattr(usual, name, density if gmp and options.get("sparse_block") == [1, 1] else 0.0)
    usual = vars(usual)
    usual["use_pretrained"] = command_line.starts_pretrained({**usual, **options})
    if gmp and options.get("pretrained_model") is None:
        usual["initial_ratio"] = pruning.INITIAL_RATIO
    if options.get("resume_epoch") == "latest":
        del options["resume_epoch"]
        options.pop("force", None)
    return {
        name: options[name]
        for name in usual
        if options.get(name) is not None
        and (name == "data" or not resume.same(options[name], usual[name]))
        and name != "classes"
    }


def train_command(saved: Saved) -> list[str]:
    """Its words; on as many processes as the run had.

    Raises:
        ValueError: the options are not those of train.py.
    """
    parser = Parser("")
    command_line.add_training_options(parser)
    flags = {action.dest for action in parser._actions if action.nargs == 0}
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(saved.ranks)]
    words = ["python", *(launcher if saved.ranks > 1 else []), "train.py"]
    for name, value in given_options(saved).items():
        first, *rest = [""] if name in flags else _words(value)
        if any(word.startswith("-") for word in rest):  # would be another option
            raise ValueError(f"{saved.folder}: {value!r} is no --{name} of train.py")
        words += [f"--{name}"] if name in flags else [*_option(name, first), *rest]
    return words


def evaluate_command(saved: Saved) -> list[str]:
    """Its words: measures what the training leaves in its --model_path."""
    model_path, data_dir = (saved.options.get(name) for name in ("model_path", "data_dir"))
    words = ["python", "evaluate.py", *_option("pruned_model", str(model_path or "models"))]
    return [*words, *(_option("data_dir", str(data_dir)) if data_dir else [])]


def _option(name: str, value: str) -> list[str]:
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def _words(value) -> list[str]:
    """A value as on a command line; train.py reads true and false, and patterns with commas."""
    if isinstance(value, dict):
        return [",".join(f"{name}={ratio}" for name, ratio in value.items())]
    if isinstance(value, list) and value:
        return [word for item in value for word in _words(item)]
    return [str(value).lower() if isinstance(value, bool) else str(value)]
