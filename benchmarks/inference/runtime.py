"""The process with one runtime, which compare.py starts and asks for times.

    python -m benchmarks.inference.runtime NAME INSTRUCTION_SET THREADS FOLDER NETWORK...

Its Python may lack Paddle and all of this project's needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peer import serve
from training.command_line import Parser

WARM_UP = 0.05  # seconds
Run = Callable[[np.ndarray], "list[np.ndarray]"]


def start_paddle(folder: Path, images: np.ndarray, threads: int, instruction_set: str) -> Run:
    import runtimes

    return runtimes.load("paddle", folder, len(images), threads).run


def start_onnxruntime(folder: Path, images: np.ndarray, threads: int, instruction_set: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = next(folder.glob("*.onnx"))
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def start_openvino(folder: Path, images: np.ndarray, threads: int, instruction_set: str) -> Run:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    path = next(folder.glob("*.onnx"))
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda images: list(request.infer({0: images}).values())


def start_mnn(folder: Path, images: np.ndarray, threads: int, instruction_set: str) -> Run:
    import _tools  # MNN's; its command `mnnconvert` would install and run telemetry
    import MNN

    path = str(next(folder.glob("*.onnx")))
    converted = str(folder / f"{threads}.mnn")
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", converted,
                       "--bizCode", "MNN", "--detectSparseSpeedUp"])  # fmt: skip
    interpreter = MNN.Interpreter(converted)
    options = {"backend": "CPU", "numThread": threads, "precision": "high"}
    session = interpreter.createSession(options)
    entry = interpreter.getSessionInput(session)
    results = interpreter.getSessionOutputAll(session)

    def tensor(array: np.ndarray):
        layout = MNN.Tensor_DimensionType_Caffe
        return MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, layout)

    def run(images: np.ndarray) -> list[np.ndarray]:
        entry.copyFrom(tensor(images))
        interpreter.runSession(session)
        outputs = []
        for _, result in sorted(results.items()):  # by name: the network's order
            output = tensor(np.empty(result.getShape(), np.float32))
            result.copyToHostTensor(output)
            outputs.append(output.getNumpyData().copy())  # of a tensor that ends
        return outputs

    return run


def start_deepsparse(folder: Path, images: np.ndarray, threads: int, instruction_set: str) -> Run:
    import deepsparse

    engine = deepsparse.Engine(str(next(folder.glob("*.onnx"))), len(images), threads)
    return lambda images: engine.run([images])


def start_sparse(folder: Path, images: np.ndarray, threads: int, instruction_set: str) -> Run:
    import sparse_runtime

    path = next(folder.glob("*.safetensors"))
    return sparse_runtime.Network(path, len(images), threads, instruction_set)


START = {
    "paddle": start_paddle,
    "onnxruntime": start_onnxruntime,
    "openvino": start_openvino,
    "mnn": start_mnn,
    "deepsparse": start_deepsparse,
    "sparse": start_sparse,
}


def difference(outputs: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest of all outputs', relative to the largest value of that output; NaN if any is."""
    found, right = [output.shape for output in outputs], [output.shape for output in expected]
    if found != right:
        raise ValueError(f"its outputs are {found}, not {right}")
    return float(np.max([abs(o - e).max() / abs(e).max() for o, e in zip(outputs, expected)]))


def version(name: str) -> str:
    module = sys.modules.get("MNN" if name == "mnn" else name)
    found = module.version() if name == "mnn" else getattr(module, "__version__", "")
    return found.partition("-")[0]  # OpenVINO's goes on with a branch


def start(name: str, instruction_set: str, threads: int, folder: Path, networks: list[str]):
    """How far off every network's outputs are, and the function that times a run of one of them."""
    images = np.load(folder / "images.npy")
    started, differences = {}, {}
    for network in networks:
        run = START[name](folder / network, images, threads, instruction_set)
        expected = np.load(folder / network / "outputs.npz")
        differences[network] = difference(run(images), list(expected.values()))
        started[network] = run

    def seconds(question: dict) -> dict:
        run = started[question["network"]]
        begin = before = time.perf_counter()
        while before < begin + WARM_UP:
            run(images)
            before = time.perf_counter()
        run(images)
        return {"seconds": time.perf_counter() - before}

    return {"differences": differences, "version": version(name)}, seconds


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("name", choices=START)
    add("instruction_set", help="avx512, avx2 or plain; only the sparse runtime looks at it")
    add("threads", type=int)
    add("folder", type=Path, help="with images.npy, and a folder for each network")
    add("networks", nargs="+", metavar="network", help="name of its folder")
    args = parser.parse_args(argv)
    serve(partial(start, **vars(args)))


if __name__ == "__main__":
    main()
