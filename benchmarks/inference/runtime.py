"""The process with one runtime, which compare.py starts and asks for times.

    python -m benchmarks.inference.runtime NAME INSTRUCTION_SET THREADS FOLDER NETWORK...

Its Python may lack Paddle and all of this project's needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.peer import serve

WARM_UP = 0.05  # seconds


def start_paddle(folder: Path, batch: int, threads: int, instruction_set: str):
    from paddle import inference

    weights = next(folder.glob("*.pdiparams"))
    program = next(path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
    config = inference.Config(str(program), str(weights))
    config.disable_gpu()
    config.disable_glog_info()
    config.enable_mkldnn()
    config.set_cpu_math_library_num_threads(threads)
    predictor = inference.create_predictor(config)
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    result = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        entry.copy_from_cpu(images)
        predictor.run()
        return result.copy_to_cpu()

    return run


def start_onnxruntime(folder: Path, batch: int, threads: int, instruction_set: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = next(folder.glob("*.onnx"))
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def start_openvino(folder: Path, batch: int, threads: int, instruction_set: str):
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    path = next(folder.glob("*.onnx"))
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda images: request.infer({0: images})[0]


def start_deepsparse(folder: Path, batch: int, threads: int, instruction_set: str):
    import deepsparse

    engine = deepsparse.Engine(str(next(folder.glob("*.onnx"))), batch, threads)
    return lambda images: engine.run([images])[0]


def start_sparse(folder: Path, batch: int, threads: int, instruction_set: str):
    import sparse_runtime

    path = next(folder.glob("*.safetensors"))
    return sparse_runtime.Network(path, batch, threads, instruction_set)


START = {
    "paddle": start_paddle,
    "onnxruntime": start_onnxruntime,
    "openvino": start_openvino,
    "deepsparse": start_deepsparse,
    "sparse": start_sparse,
}


def start(name: str, instruction_set: str, threads: str, folder: str, *networks: str):
    """What every network computes, and the function that times a run of one of them."""
    images = np.load(Path(folder) / "images.npy")
    started, outputs = {}, {}
    for network in networks:
        run = START[name](Path(folder) / network, len(images), int(threads), instruction_set)
        started[network], outputs[network] = run, run(images).tolist()
    version = getattr(sys.modules.get(name), "__version__", "")

    def seconds(question: dict) -> dict:
        run = started[question["network"]]
        begin = before = time.perf_counter()
        while before < begin + WARM_UP:
            run(images)
            before = time.perf_counter()
        run(images)
        return {"seconds": time.perf_counter() - before}

    # OpenVINO's version goes on with a branch.
    return {"outputs": outputs, "version": version.partition("-")[0]}, seconds


if __name__ == "__main__":
    serve(lambda: start(*sys.argv[1:]))
