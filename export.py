"""Brings a pruned checkpoint into the form that a runtime takes, and compares the two.

    python export.py --pruned_model models/ --format sparse --out exported  # without the zeros
    python export.py --pruned_model models/ --format onnx --out exported    # ONNX Runtime, others
    python export.py --pruned_model models/ --format paddle --out exported  # Paddle Inference
    python export.py --model resnet50 --data imagenet --what_if 0.75 0.9    # is pruning worth it?

`sparse` is for the runtime in sparse_runtime/: one file without the zeros. All formats take every
classifier of paddle.vision.models, and YOLOv3 up to its heads. An export is run on random pictures
before it is kept; then `python evaluate.py --pruned_model exported --runtime sparse` measures it.
--what_if keeps nothing: it prunes a checkpoint, or a network with random weights, at each of these
ratios, and tells file, memory and time on this machine. It does not look at accuracy.
"""

from __future__ import annotations

from functools import partial

from training.command_line import one_line_errors, start
from training.options import parse_export

parse = partial(parse_export, __doc__)
if __name__ == "__main__":
    ARGS = start(parse)

import argparse
import copy
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle

import runtimes
from runtimes import cost
from tasks.lines import warn
from tasks.yolov3 import Upsampling
from training import checkpoint, folders, train_state
from training.process import command
from training.tables import cpu_name, markdown
from training.train_state import Saved
from training.trained import complete
from unstructured_pruner import UnstructuredPruner, prunable_parameters, sparsity

MAX_ERROR = 1e-4  # of the largest output, where the network does not magnify what is rounded
ROUNDINGS = 3  # times the change by the last bit of the pictures
MIN_SPARSITY = 1 / 32  # saves what the positions cost, a bit for a weight of 32
OPSET = 13


class Leaky(paddle.nn.Layer):
    """A LeakyReLU, of a product and a maximum."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.maximum(x, self.slope * x)


class Copies(paddle.nn.Layer):
    """An Upsampling, of copies."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        channels, height, width = x.shape[1:]
        x = x.reshape([-1, channels, height, 1, width, 1])
        return x.expand([-1, -1, -1, 2, -1, 2]).reshape([-1, channels, 2 * height, 2 * width])


def make_fit_for_onednn(model) -> None:
    """Paddle Inference 3.3 with oneDNN crashes on LeakyReLU and does not take interpolate()."""
    for parent in model.sublayers(include_self=True):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, paddle.nn.LeakyReLU):
                setattr(parent, name, Leaky(layer._negative_slope))
            elif isinstance(layer, Upsampling):
                setattr(parent, name, Copies())


def jit_save(model, shape: tuple[int, ...], folder: Path, batch: int | None = None) -> None:
    spec = paddle.static.InputSpec([batch, *shape], "float32", "images")
    paddle.jit.save(model, str(folder / runtimes.PADDLE), input_spec=[spec])
    (folder / f"{runtimes.PADDLE}.pdiparams.info").unlink(missing_ok=True)  # Paddle 2: for itself


def save_paddle(model, shape: tuple[int, ...], folder: Path, batch: int | None = None) -> None:
    make_fit_for_onednn(model)
    jit_save(model, shape, folder, batch)


def save_onnx(model, shape: tuple[int, ...], folder: Path, batch: int | None = None) -> None:
    with tempfile.TemporaryDirectory() as inside:
        jit_save(model, shape, Path(inside), batch)
        program = next(p for p in os.listdir(inside) if p.endswith((".json", ".pdmodel")))
        # A process of its own: it prints tens of lines, and what fails in its C++ ends it.
        done = subprocess.run(
            [sys.executable, "-m", "paddle2onnx.command", "--model_dir", inside,
             "--model_filename", program, "--params_filename", f"{runtimes.PADDLE}.pdiparams",
             "--save_file", str(folder / runtimes.ONNX), "--opset_version", str(OPSET)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    if not (folder / runtimes.ONNX).is_file():
        lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
        errors = [n for n in lines if "ERROR" in n or "Error" in n or "No module" in n]
        why = (errors or lines or [f"status {done.returncode}"])[-1]
        raise ValueError(f"paddle2onnx could not convert the network: {why}")
    restore_slopes(folder / runtimes.ONNX, model, shape)


@paddle.no_grad()
def restore_slopes(path: Path, model, shape: tuple[int, ...]) -> None:
    """For LeakyReLU paddle2onnx 2.1 writes one operator, as it should, but with a slope of 0."""
    layers = [x for x in model.sublayers(include_self=True) if isinstance(x, paddle.nn.LeakyReLU)]
    if not layers:
        return
    import onnx

    called = []  # in this order they stand in the file
    hooks = [layer.register_forward_post_hook(lambda x, *_: called.append(x)) for layer in layers]
    model(paddle.zeros([1, *shape]))
    for hook in hooks:
        hook.remove()
    written = onnx.load(path)
    nodes = [node for node in written.graph.node if node.op_type == "LeakyRelu"]
    for node, layer in zip(nodes, called):
        node.attribute[0].f = layer._negative_slope
    onnx.save(written, path)


def to_sparse(model, shape: tuple[int, ...]):
    """The network as a Model of the sparse runtime.

    Raises:
        ValueError: that lacks an operator.
    """
    with tempfile.TemporaryDirectory() as inside:
        save_onnx(model, shape, Path(inside), batch=1)
        import onnx

        from sparse_runtime import from_onnx

        return from_onnx.convert(onnx.load(Path(inside) / runtimes.ONNX).graph)


def save_sparse(model, shape: tuple[int, ...], folder: Path) -> None:
    try:
        network = to_sparse(model, shape)
    except ValueError as error:
        raise ValueError(f"{error}{lacking_layer(model, shape)}") from None
    from sparse_runtime import model_file

    model_file.write(network, folder / runtimes.SPARSE)


@paddle.no_grad()
def lacking_layer(model, shape: tuple[int, ...]) -> str:
    """Says which layer the sparse runtime does not take by itself; nothing if it takes each."""
    tried: dict[str, tuple] = {}  # one of each kind, whatever its number of channels

    def note(name: str, layer, inputs: tuple) -> None:
        kind = re.sub(r"(?<=\()\d+, \d+|features=\d+", "", repr(layer))
        if inputs and isinstance(inputs[0], paddle.Tensor) and inputs[0].ndim in (2, 4):
            tried.setdefault(kind, (name, layer, tuple(inputs[0].shape[1:])))

    hooks = [
        layer.register_forward_pre_hook(partial(note, name))
        for name, layer in model.named_sublayers()
        if not list(layer.children())
    ]
    model(paddle.zeros([1, *shape]))
    for hook in hooks:
        hook.remove()
    for name, layer, size in tried.values():
        flat = len(size) == 1
        # Paddle 2 exports no network without parameters.
        parts = [paddle.nn.BatchNorm2D(size[0]), *[paddle.nn.Flatten()] * flat, layer]
        alone = paddle.nn.Sequential(*parts)
        alone.eval()
        try:
            to_sparse(alone, (*size, 1, 1) if flat else size)
        except ValueError:
            return f"; the layer is {name}, {layer}"
    return ""


SAVE = {"paddle": save_paddle, "onnx": save_onnx, "sparse": save_sparse}
DENSE = ("onnx", "paddle")


def outputs(network, images: paddle.Tensor) -> list[np.ndarray]:
    with paddle.no_grad():
        result = network(images)
    return [t.numpy() for t in (result if isinstance(result, (list, tuple)) else [result])]


def relative_error(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The largest of all outputs', relative to the largest value of that output; NaN if any is."""
    if [output.shape for output in expected] != [output.shape for output in found]:
        return float("nan")
    smallest = np.finfo(np.float32).tiny
    errors = [abs(e - f).max() / max(abs(e).max(), smallest) for e, f in zip(expected, found)]
    return float(np.max(errors))


def save_checked(name: str, model, shape: tuple[int, ...], folder: Path) -> float:
    """Writes an export into a new folder; returns its difference from the model.

    Raises:
        ValueError: the network cannot be exported, or computes something else then.
    """
    images = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    nearly = paddle.to_tensor(images * np.float32(1 + np.finfo(np.float32).eps))
    images = paddle.to_tensor(images)
    expected = outputs(model, images)
    if not all(np.isfinite(output).all() for output in expected):
        raise ValueError(
            "the outputs of the network are NaN or infinite: its training has diverged; give "
            "another checkpoint"
        )
    limit = max(MAX_ERROR, ROUNDINGS * relative_error(expected, outputs(model, nearly)))
    SAVE[name](model, shape, folder)
    exported = runtimes.load(name, folder, batch=len(images), threads=1)
    error = relative_error(expected, outputs(exported, images))
    if not error <= limit:
        raise ValueError(
            f"the {name} export differs from the model by {error:.1e} of its largest output, more "
            f"than {limit:.0e}; nothing was kept"
        )
    return error


def size(folder: Path) -> int:
    """Bytes of an export that is alone in its folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def compare_speed(model, shape: tuple[int, ...], folder: Path) -> None:
    """Says how long the sparse export takes beside a dense runtime; warns where it is slower."""
    dense = "onnx" if importlib.util.find_spec("onnxruntime") else "paddle"
    try:
        with tempfile.TemporaryDirectory() as inside:
            SAVE[dense](model, shape, Path(inside))
            networks = {
                name: runtimes.load(name, place, batch=1, threads=1)
                for name, place in (("sparse", folder), (dense, inside))
            }
            taken = cost.medians(networks, paddle.randn([1, *shape]), seconds=0.6)
    except (ValueError, OSError) as error:  # what was exported is there, whatever fails here
        warn(f"sparse is not compared with {dense}: {error}")
        return
    sparse = networks["sparse"].run
    print(
        f"in memory {sparse.weights:,} bytes of weights and {sparse.activations:,} of activations, "
        f"which are {sparse.activations_in_sum:,} in sum"
    )
    ms = ", ".join(f"{name} {1000 * seconds:.3g} ms" for name, seconds in taken.items())
    print(f"a picture on one thread of {cpu_name()}: {ms}")
    if taken["sparse"] > taken[dense]:
        warn(f"sparse is slower here than {dense}; --format {dense} suits this network better")


def what_if(args) -> None:
    """Prints a table: the network in the dense runtimes, and pruned at each ratio in the sparse.

    Raises:
        ValueError: no runtime takes it.
    """
    weights = folders.find_weights(args.pruned_model) if args.pruned_model is not None else None
    saved = train_state.read(weights.parent) if weights else None
    task = complete(args, saved)
    paddle.seed(args.seed)
    model = task.make_model(args)
    if weights:
        checkpoint.load_weights(model, weights, saved)
    model.eval()
    shape = task.input_shape(args)
    print(
        f"{args.model}, {weights or 'random weights'}, pictures of {'x'.join(map(str, shape))}, "
        f"{args.num_classes} classes; one thread of {cpu_name()}\n",
        flush=True,
    )
    rows, networks, reasons = {}, {}, {}  # by ratio and runtime
    with tempfile.TemporaryDirectory() as inside:
        for ratio in (None, *sorted(set(args.what_if))):
            if ratio is not None:  # on top of a lower one, which took the smallest weights
                UnstructuredPruner(model, "ratio", ratio=ratio, distribution="uniform").step()
            zeros = f"{sparsity(prunable_parameters(model)):.2%}"
            for name in DENSE if ratio is None else ["sparse"]:
                folder = Path(tempfile.mkdtemp(dir=inside))
                row = rows[ratio, name] = ["" if ratio is None else f"{ratio:g}", zeros, name]
                try:
                    save_checked(name, copy.deepcopy(model), shape, folder)
                    memory = cost.memory(name, folder, shape)
                    networks[ratio, name] = runtimes.load(name, folder, batch=1, threads=1)
                    row += [f"{n / 1e6:.1f}" for n in (size(folder), memory)]
                except ValueError as error:
                    row += ["left out"]
                    reasons[name] = error
        if not networks:
            raise next(iter(reasons.values()))
        taken = cost.medians(networks, paddle.randn([1, *shape]), seconds=len(networks))
    dense = min((taken[form] for form in taken if form[1] in DENSE), default=float("nan"))
    for form, seconds in taken.items():
        rows[form] += [f"{1000 * seconds:.2f}", f"{dense / seconds:.2f}"]
    head = ["ratio", "sparsity", "runtime", "file, MB", "memory, MB", "ms a picture"]
    print(markdown([*head, "times as fast"], list(rows.values())))
    for name, error in reasons.items():
        print(f"{name} is left out: {error}")
    print("accuracy was not looked at: a network is trained further when it is pruned")


def check_out(out: Path, before: Saved | None, source: str) -> None:
    """
    Args:
        before: the state that --out holds.
        source: SHA-256 of the weights to export.

    Raises:
        ValueError: --out holds a training, or what is of other weights.
    """
    if before is None:
        names = [name for each in runtimes.NAMES for name in runtimes.files(each, out)]
        found = [name for name in names if (out / name).exists()]
        if found:
            raise ValueError(
                f"--out {out} holds {found[0]} of an unknown network; "
                "remove it or give another folder"
            )
    elif before.exported_from is None:
        raise ValueError(f"--out {out} holds a training; give another folder")
    elif before.exported_from != source:
        raise ValueError(
            f"--out {out} holds exports of another checkpoint; remove it or give another folder"
        )


@one_line_errors
def main(argv=None) -> None:
    args = argv if isinstance(argv, argparse.Namespace) else parse(argv)
    if args.format != "paddle" and importlib.util.find_spec("paddle2onnx") is None:
        raise ValueError('paddle2onnx is not there; pip install ".[export]"')
    paddle.set_device("cpu")  # whose runtimes these are
    if args.what_if:
        what_if(args)
    else:
        export(args)


def export(args) -> None:
    weights = folders.find_weights(args.pruned_model)
    saved, before = train_state.read(weights.parent), train_state.read(args.out)
    task = complete(args, saved)
    source = train_state.sha256(weights)
    check_out(args.out, before, source)
    model = task.make_model(args)
    checkpoint.load_weights(model, weights, saved)
    model.eval()
    zeros = sparsity(prunable_parameters(model))
    if args.format == "sparse" and zeros < MIN_SPARSITY:
        warn(f"sparse gains nothing on a dense network: {zeros:.2%} of its weights are 0")
    shape = task.input_shape(args)
    side = before.options.get("image_size") if before else None
    if side not in (None, shape[1]):
        raise ValueError(
            f"--out {args.out} holds exports for pictures of {side}x{side}; give another folder"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out, prefix=".") as inside:
        error = save_checked(args.format, model, shape, Path(inside))
        written = size(Path(inside))
        for name in runtimes.stale(args.format):  # of another version of Paddle
            (args.out / name).unlink(missing_ok=True)
        for path in Path(inside).iterdir():
            os.replace(path, args.out / path.name)
    own = {name: getattr(args, name) for name in ("model", "scale", "num_classes", "data")}
    options = {**(saved.options if saved else {}), **own, "image_size": shape[1]}
    train_state.write(Saved(args.out, options, exported_from=source), args.out)
    dense = sum(4 * p.size for p in model.state_dict().values())
    place = args.data_dir or options.get("data_dir")
    data_dir = ["--data_dir", place] if place and isinstance(place, str) else []
    runtime = ["--runtime", args.format, *data_dir]
    print("wrote", *(args.out / name for name in runtimes.files(args.format, args.out)))
    print(f"{written:,} bytes, {written / dense:.1%} of the weights as dense float32")
    if args.format == "sparse":
        compare_speed(model, shape, args.out)
    print(f"difference from the model on random pictures {error:.1e}; to measure it:")
    print(command("evaluate.py", "--pruned_model", args.out, *runtime))


if __name__ == "__main__":
    sys.exit(main(ARGS))
