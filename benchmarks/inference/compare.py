"""Times networks, dense and pruned, on the CPU: the sparse runtime beside other runtimes.

    bash run.sh peers   # OpenVINO, MNN and DeepSparse, into environments of their own
    python -m benchmarks.inference.compare --out medians.jsonl
    python -m benchmarks.inference.compare --model mobilenet_v2 resnet50 yolov3
    python -m benchmarks.inference.compare --pruned_model models/   # the masks of a training
    python -m benchmarks.inference.compare --model all --sparsities 0.75 --batch 1 --threads 1 \\
        --rounds 5
    python -m benchmarks.inference.compare --table medians.jsonl [FILE.jsonl ...]

The weights are random, and the statistics of the batch normalisations those of random pictures.
What is pruned is pruned by UnstructuredPruner with the uniform distribution: the same ratio in each
convolution and fully connected layer, but for the first convolution and depthwise ones, which stay
dense. Every runtime is a process of its own; a run is from one numpy array to others. All that
use the same number of threads take turns: in a round each runs every network for 50 ms to warm up,
and times the next run. (Before that the caches hold another process' data, and both threads of ONNX
Runtime may be on one core.) Between its turns a process is stopped: the second thread of Paddle and
of ONNX Runtime spins for some 0.1 s after a run, on a core that another runtime is timed on.

What cannot be started is left out, and what is off from Paddle with the network itself by more than
0.2% of the largest output (MNN, which uses Winograd's method: by more than 10%). Runtimes that make
no use of zeros are timed with the dense network. Paddle Inference gets a maximum in the place of a
LeakyReLU and copies in the place of an upsampling, or it could not use oneDNN.

Where the machine has AVX-512, what can be held to AVX2 is timed that way, too. ONNX Runtime cannot,
nor DeepSparse: under NM_ARCH=avx2 it took as long as before, less than AVX2's multiply-adds would.
MNN's wheel has AVX2 alone.
The limit is the time of the multiply-adds with weights that are not zero, at the rate of a loop in
registers, plus that of reading and writing each activation once, at the rate of copies in the cache
(peak.cpp). Results that need not leave the cores are not counted there: of depthwise convolutions,
and of what has no weights. Nor is the reading of the weights. Winograd's method needs fewer
multiply-adds: on dense 3x3 convolutions MNN is ahead of this limit.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from benchmarks.inference import networks
from benchmarks.inference.tables import RUNTIMES, read_records, report
from benchmarks.peer import ROOT, Peer
from benchmarks.report import cpu_name
from sparse_runtime import build as kernels
from sparse_runtime import model_file
from sparse_runtime.model_file import Model
from tasks import classification
from training.command_line import Parser, number, one_line_errors

RUNTIME = ["-m", "benchmarks.inference.runtime"]


class RuntimePeer(Peer):
    """The process with one runtime; it is stopped while nothing is asked of it."""

    def __init__(self, name: str, *, instruction_set: str, threads: int, folder: Path,
                 networks: list[str]):  # fmt: skip
        self.instruction_set, self.networks = instruction_set, networks
        environment = {"NM_DISABLE_ANALYTICS": "1"}
        if instruction_set != kernels.instruction_sets()[0]:
            environment.update(RUNTIMES[name].avx2)
        own = ROOT / RUNTIMES[name].venv / "bin" / "python"
        python = str(own) if RUNTIMES[name].venv and own.exists() else sys.executable
        command = [python, "-W", "ignore", *RUNTIME, name, instruction_set, str(threads)]
        super().__init__(name, [*command, str(folder), *networks], environment)
        self.version, self.differences = self.hello["version"], self.hello["differences"]
        for network, difference in self.differences.items():
            if not difference <= RUNTIMES[name].max_difference:
                self.end()
                raise ChildProcessError(
                    f"at {float(network):.0%} it is off by {difference:.1e} of the largest output"
                )
        self.process.send_signal(signal.SIGSTOP)

    def seconds(self, network: str) -> float:
        self.process.send_signal(signal.SIGCONT)
        seconds = self.ask({"network": network})["seconds"]
        self.process.send_signal(signal.SIGSTOP)
        return seconds


def start_peers(
    stack: contextlib.ExitStack, args, folder: Path, models: dict[float, Model | None], threads: int
) -> list[RuntimePeer]:
    """Those that can be started and compute the same."""
    peers: list[RuntimePeer] = []
    for name in args.peers:
        runtime = RUNTIMES[name]
        takes = [s for s, model in models.items() if model or name != "sparse"]
        names = [f"{sparsity:g}" for sparsity in takes if runtime.zeros or sparsity == 0]
        sets = kernels.instruction_sets()[:1] if runtime.avx2 is None else args.instruction_sets
        for instruction_set in sets if names else ():
            try:
                peer = RuntimePeer(
                    name,
                    instruction_set=instruction_set,
                    threads=threads,
                    folder=folder,
                    networks=names,
                )
            except ChildProcessError as error:
                hint = "; bash run.sh peers" if runtime.venv and "No module" in str(error) else ""
                print(f"{name} is left out: {error}{hint}", file=sys.stderr)
                break
            stack.callback(peer.end)
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


@functools.cache
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
        if "weight" not in op.ARRAYS:
            continue
        multiply_adds += np.count_nonzero(op.weight) * height * width
        if op.kind != "depthwise":
            moved += channels * height * width
    moved *= 2 * np.dtype(np.float32).itemsize
    return batch * (multiply_adds / rates["multiply_adds"] + moved / rates["copied_bytes"])


def measure(
    args, folder: Path, models: dict[float, Model | None], batch: int, threads: int
) -> list[dict]:
    """What was measured, and the limits; without what is the same for all of a network."""
    with contextlib.ExitStack() as stack:
        peers = start_peers(stack, args, folder, models, threads)
        seconds = time_turns(peers, args.rounds)
    records = []
    for (peer, network), values in seconds.items():
        low, median, high = (round(1000 * q, 4) for q in np.percentile(values, [25, 50, 75]))
        records.append({
            "runtime": peer.name, "version": peer.version, "instructions": peer.instruction_set,
            "sparsity": float(network), "ms": median, "quartiles": [low, high],
            "difference": peer.differences[network],
        })  # fmt: skip
    for instruction_set in args.instruction_sets:
        rates = machine_rates(instruction_set, threads)
        for sparsity, model in models.items():
            if model:
                ms = round(1000 * limit(model, batch, rates), 4)
                records.append({
                    "runtime": "limit", "instructions": instruction_set, "sparsity": sparsity,
                    "ms": ms, **rates,
                })  # fmt: skip
    return [{"batch": batch, "rounds": args.rounds, "threads": threads, **r} for r in records]


@one_line_errors
def main(argv=None) -> int:
    parser = Parser(__doc__)
    sets = kernels.instruction_sets()
    sets = sets[:-1] or sets  # plain C++ only where there is nothing else
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        metavar="NAME",
        help="classifiers of paddle.vision.models, all of them by `all`, or yolov3 "
        "(default: mobilenet_v1)",
    )
    add(
        "--pruned_model",
        metavar="PATH",
        help="time the network of this checkpoint (folder, prefix or file), as it was pruned",
    )
    add("--scale", type=number(float, 0.01), help="the networks' width (default: 1)")
    add("--image_size", type=number(int, 32), help="default: 224; yolov3 416, inception_v3 299")
    add(
        "--sparsities",
        type=number(float, 0.01, 0.99),
        nargs="+",
        default=[0.55, 0.75, 0.9],
        help="beside 0 (default: 0.55 0.75 0.9)",
    )
    add(
        "--batch",
        type=number(int, 1),
        nargs="+",
        default=[1, 8],
        help="pictures at once (default: 1 8)",
    )
    add("--threads", type=number(int, 1), nargs="+", default=[1, 2], help="default: 1 2")
    add("--rounds", type=number(int, 1), default=30, help="default: 30")
    add("--peers", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES), help="default: all")
    add("--instruction_sets", nargs="+", choices=sets, default=sets, help="default: all of these")
    add("--out", type=Path, metavar="FILE", help="gets the medians, a JSON object a line")
    add("--table", type=Path, nargs="+", metavar="FILE", help="draw the tables, measure nothing")
    args = parser.parse_args(argv)
    print(report(read_records(args.table) if args.table else measure_all(args)))
    return 0


def measure_all(args) -> list[dict]:
    paddle.set_device("cpu")
    names = args.model or [None if args.pruned_model else "mobilenet_v1"]
    chosen = [
        networks.options(args, each)
        for name in names
        for each in (classification.MODELS if name == "all" else [name])
    ]
    records = []
    with args.out.open("w") if args.out else contextlib.nullcontext() as file:
        for found in chosen:
            common = {
                "network": found.model, "scale": found.scale, "image_size": found.image_size,
                "masks": "trained" if found.weights else "uniform",
                "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
                "date": datetime.date.today().isoformat(),
            }  # fmt: skip
            for batch in args.batch:
                with tempfile.TemporaryDirectory() as inside:
                    folder = Path(inside)
                    models = networks.write_all(folder, found, args.sparsities, batch)
                    for threads in args.threads:
                        new = measure(args, folder, models, batch, threads)
                        records += [{**common, **r} for r in new]
                        if file:
                            file.writelines(json.dumps({**common, **r}) + "\n" for r in new)
                            file.flush()
    return records


if __name__ == "__main__":
    sys.exit(main())
