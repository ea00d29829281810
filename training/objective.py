"""What a training minimises: the loss of its task and, with --teacher, the distance from another
network's outputs.
"""

from __future__ import annotations

import argparse
from types import ModuleType

import paddle
import paddle.nn.functional as F

from tasks import TASKS
from tasks.lines import shortened
from training import checkpoint, convolutions, folders, train_state
from training.trained import check_model, classes_of


class Objective:
    """The loss of a batch, of which train.py takes the gradient.

    Args:
        task: of tasks/.
        args: the options of the training.
        teacher: see load_teacher().
    """

    def __init__(
        self, task: ModuleType, args: argparse.Namespace, teacher: paddle.nn.Layer | None = None
    ):
        self.task, self.teacher = task, teacher
        self.weight, self.temperature = args.distill_weight, args.distill_temperature
        # Not at 0: a detector's loss has no such argument.
        smoothing = args.label_smoothing
        self.options = {"label_smoothing": smoothing} if smoothing else {}

    def __call__(self, images, outputs, targets: list[paddle.Tensor]) -> paddle.Tensor:
        """A scalar, the mean over the batch.

        Args:
            images: float32 [N, C, H, W].
            outputs: what the network that is trained gave for them.
            targets: as the task's loss takes them.
        """
        loss = self.task.loss(outputs, targets, **self.options)
        if self.teacher is None:
            return loss
        with paddle.no_grad():
            taught = self.task.main_output(self.teacher(images))
        distance = distillation(self.task.main_output(outputs), taught, self.temperature)
        return (1 - self.weight) * loss + self.weight * distance


def distillation(logits: paddle.Tensor, taught: paddle.Tensor, temperature: float) -> paddle.Tensor:
    """T^2 KL(teacher || student), both softened by T: a scalar, the mean over a batch.

    (Hinton et al., 2015. With T^2 its gradients are of one size whatever T is.)

    Args:
        logits, taught: [N, classes] of the network that is trained, and of its teacher.
    """
    student = F.log_softmax(logits.astype("float32") / temperature)  # also with --amp
    teacher = F.log_softmax(taught.astype("float32") / temperature)
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(-1).mean()


def load_teacher(args: argparse.Namespace) -> paddle.nn.Layer | None:
    """The network of --teacher, in its eval mode; None where there is none.

    Model, width and classes are those of the train-state.json beside its weights, where there is
    one, else the training's own.

    Args:
        args: the options of the training, with the names of its classes.

    Raises:
        ValueError: it is of other classes, or does not take pictures of this size.
    """
    if args.teacher is None:
        return None
    path = folders.find_weights(args.teacher)
    try:
        saved = train_state.read(path.resolve().parent)
        trained = saved.options if saved else {}
        own = {name: trained[name] for name in ("model", "scale", "num_classes") if name in trained}
        options = argparse.Namespace(**{**vars(args), **own})
        check_model(options)
        names, here = classes_of(saved), args.classes
        if options.num_classes != args.num_classes:
            raise ValueError(
                f"it tells {options.num_classes} classes apart, this training {args.num_classes}"
            )
        data = trained.get("data")
        # Where names are missing, that of the data set has to do.
        other = data != args.data if None in (names, here) else names != here
        if saved and other:
            raise ValueError(
                f"it was trained on {data} with {shortened(names)}, this training is on "
                f"{args.data} with {shortened(here)}"
            )
        teacher = TASKS[args.data].make_model(options)
        checkpoint.load_weights(teacher, path, saved)
    except ValueError as error:
        raise ValueError(f"--teacher {args.teacher}: {error}") from None
    if args.fast_convolutions:
        convolutions.use_fast(teacher)
    teacher.eval()
    return teacher
