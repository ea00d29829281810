"""What export.py wrote, run on the CPU: by Paddle Inference, ONNX Runtime or the sparse runtime."""

from __future__ import annotations

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle

import sparse_runtime
from training import train_state
from training.options import RUNTIMES

NAMES = RUNTIMES
ONNX, SPARSE = "model.onnx", "model-sparse.safetensors"
PADDLE = "inference"


def files(name: str, folder: Path) -> list[str]:
    """Names of the files in `folder` that an export for this runtime consists of."""
    old = (folder / f"{PADDLE}.pdmodel").is_file()  # Paddle 2
    program = f"{PADDLE}.{'pdmodel' if old else 'json'}"
    return {"onnx": [ONNX], "sparse": [SPARSE], "paddle": [program, f"{PADDLE}.pdiparams"]}[name]


def stale(name: str) -> list[str]:
    """Names of files that an earlier export for this runtime, by another Paddle, may have left."""
    return [f"{PADDLE}.pdmodel", f"{PADDLE}.json"] if name == "paddle" else []


class Exported:
    """An exported network in the place of a paddle.nn.Layer.

    Called with float32 [N, C, H, W] it returns its output, or a list of them if there are several.
    """

    def __init__(self, run):
        self.run = run

    def eval(self) -> None:
        """It has no training mode."""

    def __call__(self, images: paddle.Tensor):
        outputs = [paddle.to_tensor(output) for output in self.run(images.numpy())]
        return outputs if len(outputs) > 1 else outputs[0]


def load(name: str, folder, batch: int, threads: int) -> Exported:
    """Starts an exported network, its files compared with the checksums of the export.

    Args:
        name: one of NAMES.
        folder: what was `--out` of export.py.
        batch: pictures at once, at most.

    Raises:
        FileNotFoundError, ValueError: that was not exported there, or is damaged.
    """
    folder = Path(folder)
    saved = train_state.read(folder)
    for file in files(name, folder):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {file}; give the --out folder of export.py --format {name}"
            )
        train_state.verify_file(folder / file, saved)
    starters = {"paddle": _paddle, "onnx": _onnx, "sparse": _sparse}
    return Exported(starters[name](folder, batch, threads))


def _sparse(folder: Path, batch: int, threads: int):
    return sparse_runtime.Network(folder / SPARSE, batch, threads)


def _onnx(folder: Path, batch: int, threads: int):
    try:
        import onnxruntime  # of the extra "export", which training does without
    except ImportError as error:
        raise ValueError(f'{error}; pip install ".[export]"') from None

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(folder / ONNX, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime exports no exception class
        raise ValueError(f"ONNX Runtime does not take {folder / ONNX}: {error}") from None
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def _paddle(folder: Path, batch: int, threads: int):
    from paddle import inference

    def start(onednn: bool):
        config = inference.Config(*(str(folder / name) for name in files("paddle", folder)))
        config.disable_gpu()
        config.enable_mkldnn() if onednn else config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        config.disable_glog_info()
        try:
            return inference.create_predictor(config)
        except Exception as error:
            raise ValueError(f"Paddle Inference does not take {folder}: {error}") from None

    predictor = start(onednn=True)

    def compute(images: np.ndarray) -> list[np.ndarray]:
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(images)
        predictor.run()
        names = predictor.get_output_names()
        return [predictor.get_output_handle(name).copy_to_cpu() for name in names]

    def run(images: np.ndarray) -> list[np.ndarray]:
        nonlocal predictor
        try:
            return compute(images)
        except NotImplementedError:  # of Paddle 3.3's oneDNN for YOLOv3's upsampling
            predictor = start(onednn=False)
            return compute(images)

    return run
