"""Times MobileNetV1, dense and pruned, on the CPU: the sparse runtime beside other runtimes.

    python -m benchmarks.inference.compare [--batch 8] [--out FILE.jsonl]
        [--openvino_python PATH] [--deepsparse_python PATH]
    python -m benchmarks.inference.compare --table FILE.jsonl [FILE.jsonl ...]

The weights are random; those of the 1x1 convolutions and of the classifier are pruned by magnitude,
the same ratio in every layer, and the statistics of the batch normalisations are those of random
pictures. Every runtime is a process of its own; a run is from one numpy array to another. All that
use the same number of threads take turns: in a round each runs every network for 50 ms to warm up,
and times the next run. (Before that the caches hold another process' data, and both threads of ONNX
Runtime may be on one core.) Between its turns a process is stopped: the second thread of Paddle and
of ONNX Runtime spins for some 0.1 s after a run, on a core that another runtime is timed on.

OpenVINO and DeepSparse may need a Python of their own, which `--*_python` names; what cannot be
started, or computes something else than ONNX Runtime, is left out. DeepSparse is developed no more:

    python3.11 -m venv deepsparse
    deepsparse/bin/pip install deepsparse==1.8.0 sparsezoo "numpy<2" "onnx<1.15"

Where the machine has AVX-512, what can be held to AVX2 is timed that way, too. ONNX Runtime cannot,
nor DeepSparse: under NM_ARCH=avx2 it took as long as before, less than AVX2's multiply-adds would.
The limit is the time of the multiply-adds with weights that are not zero, at the rate of a loop in
registers, plus that of reading and writing each activation once, at the rate of copies in the cache
(peak.cpp). A depthwise convolution's result, which need not leave the cores, is not counted there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
from paddle.vision.models import mobilenet_v1
from tqdm import tqdm

import export
import runtimes
from benchmarks.inference.tables import NOTE, RUNTIMES, about, read_records, tables
from benchmarks.peer import Peer
from benchmarks.report import cpu_name
from sparse_runtime import build as kernels
from sparse_runtime import model_file
from sparse_runtime.model_file import Model
from tasks.measure import build
from training.command_line import number, one_line_errors

RUNTIME = ["-m", "benchmarks.inference.runtime"]
REFERENCE = "onnxruntime"
MAX_DIFFERENCE = 1e-3  # of a class' output from ONNX Runtime's


def make_network(scale: float, image_size: int, sparsity: float):
    """MobileNetV1 with random weights, whose activations are as large as a trained one's."""
    paddle.seed(0)
    model = build(lambda: mobilenet_v1(scale=scale), "mobilenet_v1", scale, False)
    for weight in model.parameters():
        if weight.ndim == 2 or (weight.ndim == 4 and list(weight.shape[2:]) == [1, 1]):
            values = weight.numpy()
            values[abs(values) < np.quantile(abs(values), sparsity)] = 0
            weight.set_value(values)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._momentum = 0.0  # its statistics are those of the last batch
    with paddle.no_grad():
        model(paddle.randn([16, 3, image_size, image_size]))
    model.eval()
    return model


def write_networks(folder: Path, args) -> dict[str, Model]:
    """For every sparsity a folder of that name, with the network for each runtime; and pictures."""
    shape = (3, args.image_size, args.image_size)
    images = np.random.default_rng(0).standard_normal((args.batch, *shape), np.float32)
    np.save(folder / "images.npy", images)
    models = {}
    for sparsity in args.sparsities:
        inside = folder / f"{sparsity:g}"
        inside.mkdir()
        network = make_network(args.scale, args.image_size, sparsity)
        export.save_paddle(network, shape, inside, args.batch)
        export.convert(network, shape, inside, args.batch)
        export.save_sparse(network, shape, inside)
        models[inside.name] = model_file.read(inside / runtimes.SPARSE)
    return models


class RuntimePeer(Peer):
    """The process with one runtime; it is stopped while nothing is asked of it."""

    def __init__(self, name: str, *, instruction_set: str, threads: int, folder: Path,
                 networks: list[str], python: str):  # fmt: skip
        self.instruction_set, self.networks = instruction_set, networks
        environment = {"NM_DISABLE_ANALYTICS": "1"}
        if instruction_set != kernels.instruction_sets()[0]:
            environment.update(RUNTIMES[name].avx2)
        command = [python, "-W", "ignore", *RUNTIME, name, instruction_set, str(threads)]
        super().__init__(name, [*command, str(folder), *networks], environment)
        self.version = self.hello["version"]
        self.outputs = {key: np.array(output) for key, output in self.hello["outputs"].items()}
        self.differences: dict[str, float] = {}
        self.process.send_signal(signal.SIGSTOP)

    def compare(self, reference: RuntimePeer) -> None:
        for network, output in self.outputs.items():
            difference = float(abs(output - reference.outputs[network]).max())
            if not difference <= MAX_DIFFERENCE:
                raise ChildProcessError(
                    f"at {float(network):.0%} it differs from {reference.name} by {difference:.1e}"
                )
            self.differences[network] = difference

    def seconds(self, network: str) -> float:
        self.process.send_signal(signal.SIGCONT)
        seconds = self.ask({"network": network})["seconds"]
        self.process.send_signal(signal.SIGSTOP)
        return seconds


def start_peers(stack: contextlib.ExitStack, args, folder: Path, threads: int) -> list[RuntimePeer]:
    """Those that can be started and compute the same, the reference first."""
    peers: list[RuntimePeer] = []
    for name in sorted(args.peers, key=lambda name: name != REFERENCE):
        runtime = RUNTIMES[name]
        networks = [f"{s:g}" for s in args.sparsities if s > 0 or name != "sparse"]
        python = getattr(args, f"{name}_python", sys.executable)
        sets = kernels.instruction_sets()[:1] if runtime.avx2 is None else args.instruction_sets
        for instruction_set in sets:
            try:
                peer = RuntimePeer(
                    name,
                    instruction_set=instruction_set,
                    threads=threads,
                    folder=folder,
                    networks=networks,
                    python=python,
                )
                stack.callback(peer.end)
                peer.compare((peers or [peer])[0])
            except ChildProcessError as error:
                if name == REFERENCE:
                    raise
                hint = f"; pip install {runtime.install}" if "No module" in str(error) else ""
                print(f"{name} is left out: {error}{hint}", file=sys.stderr)
                break
            peers.append(peer)
    return peers


def time_turns(peers: list[RuntimePeer], rounds: int) -> dict[tuple[RuntimePeer, str], list[float]]:
    """Seconds by peer and network."""
    seconds: dict = {(peer, network): [] for peer in peers for network in peer.networks}
    turns = list(seconds)
    for i in tqdm(range(rounds), desc="rounds", disable=None, leave=False):
        first = i * len(turns) // rounds  # each round begins with another one
        for peer, network in turns[first:] + turns[:first]:
            seconds[peer, network].append(peer.seconds(network))
    return seconds


def machine_rates(instruction_set: str, threads: int) -> dict[str, float]:
    """What peak.cpp measures."""
    source = Path(__file__).with_name("peak.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        compiler = kernels.compiler(instruction_set)
        kernels.run([*compiler, f"-I{kernels.KERNELS}", str(source), "-o", str(program)])
        return json.loads(subprocess.check_output([program, str(threads)]))


def limit(model: Model, batch: int, rates: dict[str, float]) -> float:
    """Seconds of the multiply-adds that are left and of moving the activations."""
    shapes = model_file.shapes(model)
    multiply_adds, moved = 0, np.prod(shapes[0])
    for op, (channels, height, width) in zip(model.operators, shapes[1:]):
        if op.weight is not None:
            multiply_adds += np.count_nonzero(op.weight) * height * width
        if op.kind != "depthwise":
            moved += channels * height * width
    moved *= 2 * np.dtype(np.float32).itemsize
    return batch * (multiply_adds / rates["multiply_adds"] + moved / rates["copied_bytes"])


def measure(args, folder: Path, models: dict[str, Model], threads: int) -> list[dict]:
    """A record for every line of the table."""
    common = {
        **{name: getattr(args, name) for name in ("scale", "image_size", "batch", "rounds")},
        "threads": threads, "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        peers = start_peers(stack, args, folder, threads)
        seconds = time_turns(peers, args.rounds)
    records = []
    for (peer, network), values in seconds.items():
        low, median, high = (round(1000 * q, 4) for q in np.percentile(values, [25, 50, 75]))
        records.append({
            **common, "runtime": peer.name, "version": peer.version,
            "instructions": peer.instruction_set, "sparsity": float(network), "ms": median,
            "quartiles": [low, high], "difference": peer.differences[network],
        })  # fmt: skip
    for instruction_set in args.instruction_sets:
        rates = machine_rates(instruction_set, threads)
        for network, model in models.items():
            ms = round(1000 * limit(model, args.batch, rates), 4)
            records.append({
                **common, "runtime": "limit", "instructions": instruction_set,
                "sparsity": float(network), "ms": ms, **rates,
            })  # fmt: skip
    return records


@one_line_errors
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = kernels.instruction_sets()
    sets = sets[:-1] or sets  # plain C++ only where there is nothing else
    add = parser.add_argument
    add("--sparsities", type=number(float, 0, 0.99), nargs="+", default=[0, 0.55, 0.75, 0.9])
    add("--threads", type=number(int, 1), nargs="+", default=[1, 2])
    add("--batch", type=number(int, 1), default=1, help="pictures at once (default: 1)")
    add("--rounds", type=number(int, 1), default=30, help="default: 30")
    add("--peers", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES), help="default: all")
    add("--instruction_sets", nargs="+", choices=sets, default=sets, help="default: all of these")
    add("--scale", type=number(float, 0.01), default=1.0, help="MobileNetV1's width (default: 1)")
    add("--image_size", type=number(int, 32), default=224, help="default: 224")
    for name, runtime in RUNTIMES.items():
        if name != "sparse":
            add(f"--{name}_python", metavar="PATH", default=sys.executable,
                help=f"the Python that has {runtime.label} (default: this one)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="gets the medians, a JSON object a line")
    add("--table", type=Path, nargs="+", metavar="FILE", help="draw the table, measure nothing")
    args = parser.parse_args(argv)
    records = read_records(args.table) if args.table else measure_all(args)
    print(about(records), *tables(records), NOTE, sep="\n\n")
    return 0


def measure_all(args) -> list[dict]:
    if REFERENCE not in args.peers:
        raise ValueError(f"--peers needs {REFERENCE}: the outputs of others are compared with its")
    for name in args.peers:
        python = getattr(args, f"{name}_python", sys.executable)
        if not shutil.which(python):
            raise FileNotFoundError(f"--{name}_python is no program: {python}")
    if args.out:
        args.out.touch()
    args.sparsities = sorted(set(args.sparsities))
    paddle.set_device("cpu")
    records = []
    with tempfile.TemporaryDirectory() as inside:
        models = write_networks(Path(inside), args)
        for threads in args.threads:
            records += measure(args, Path(inside), models, threads)
    if args.out:
        args.out.write_text("".join(json.dumps(r) + "\n" for r in records))
    return records


if __name__ == "__main__":
    sys.exit(main())
