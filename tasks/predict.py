"""Single pictures: one from a file, what a network says of it, and that as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from readers.pictures import decode, read_file
from readers.printable import printable


def read_picture(task, options, path: str) -> tuple[np.ndarray, paddle.Tensor]:
    """Its RGB pixels, uint8 [H, W, 3], and the same as a batch of one, float32 [1, 3, h, w].

    Raises:
        FileNotFoundError, ValueError: it is no picture that can be read. They do not name it.
    """
    pixels = decode(read_file(path))
    return pixels, paddle.to_tensor(task.to_input(options, pixels)[None])


@paddle.no_grad()
def predict(task, options, network, pixels: np.ndarray, images: paddle.Tensor) -> list[dict]:
    """`task.predictions()` of what read_picture() returned.

    Raises:
        ValueError: the network computes NaN or infinity.
    """
    outputs = network(images)
    for output in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
        if not paddle.isfinite(output).all():
            raise ValueError(
                "the outputs of the network are NaN or infinite: its training has diverged; give "
                "another checkpoint"
            )
    return task.predictions(outputs, pixels, options.classes)


def text(path: str, found: list[dict]) -> str:
    """The picture's name, and a line for each prediction: how likely, what, and where."""
    lines = [printable(path)]
    for each in found:
        share = each["score"] if "score" in each else each["probability"]
        edges = "".join(f" {round(edge)}" for edge in each.get("box", []))
        lines.append(f"  {share:.4f} {printable(each['class'])}{edges}")
    return "\n".join(lines) if found else f"{lines[0]}\n  nothing found"


def file_name(number: int, path: str) -> str:
    """A drawing's: unique by its number, and never a path, whatever the picture is called."""
    return f"{number}-{printable(Path(path).stem)[:50]}.png"
