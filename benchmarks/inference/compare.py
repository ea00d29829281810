"""Times MobileNetV1, dense and pruned, on the CPU: the sparse runtime beside other runtimes.

    python -m benchmarks.inference.compare [--batch 8] [--out FILE.jsonl]
        [--openvino_python PATH] [--deepsparse_python PATH]
    python -m benchmarks.inference.compare --table FILE.jsonl [FILE.jsonl ...] [--language zh]

The weights of the 1x1 convolutions and of the classifier are pruned by magnitude, the same ratio in
every layer; they are random, but the statistics of the batch normalisations are those of what they
are given. Every runtime is a process of its own; a run is from one numpy array to another. All
that use the same number of threads take turns: in a round each runs every network for 50 ms, and
the run after that counts. (The first find the caches full of others' numbers, and ONNX Runtime's
second thread on the core of the first.) A process whose turn it is not is stopped: after a run with
two threads, Paddle's and ONNX Runtime's second one waits in a loop for some 0.1 s, on a core that
another is timed on.

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

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
PEER = ["-m", "benchmarks.inference.compare"]  # the program of the other process
WARM_UP = 0.05  # seconds

# A peer: one process with one runtime. Its Python may lack Paddle and all of this project's needs.


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
    taken = predictor.get_input_handle(predictor.get_input_names()[0])
    given = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images: np.ndarray) -> np.ndarray:
        taken.copy_from_cpu(images)
        predictor.run()
        return given.copy_to_cpu()

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


def serve(name: str, instruction_set: str, threads: str, folder: str, *networks: str) -> None:
    """Prints a line with what every network computes, then for each that is asked for its seconds.

    A line is a JSON object; one with an "error" is the last.
    """
    if sys.platform == "linux":  # stopped, it would not see that nobody asks any more
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # for what a runtime itself has to say
    images = np.load(Path(folder) / "images.npy")
    started, hello = {}, {"outputs": {}}
    try:
        for network in networks:
            run = START[name](Path(folder) / network, len(images), int(threads), instruction_set)
            started[network], hello["outputs"][network] = run, run(images).tolist()
        version = getattr(sys.modules.get(name), "__version__", "")
        hello["version"] = version.partition("-")[0]  # OpenVINO's goes on with a branch
    except Exception as error:
        hello = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        run = started[json.loads(line)["network"]]
        begin = before = time.perf_counter()
        while before < begin + WARM_UP:
            run(images)
            before = time.perf_counter()
        run(images)
        seconds = time.perf_counter() - before
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__" and sys.argv[1:2] == ["--serve"]:
    serve(*sys.argv[2:])
    sys.exit()

# The program, which needs what a peer may lack.

import argparse  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import paddle  # noqa: E402
from paddle.vision.models import mobilenet_v1  # noqa: E402
from tqdm import tqdm  # noqa: E402

import export  # noqa: E402
import runtimes  # noqa: E402
from benchmarks.pruner_step import cpu_model, markdown  # noqa: E402
from sparse_runtime import build as kernels  # noqa: E402
from sparse_runtime import model_file  # noqa: E402
from sparse_runtime.model_file import Model  # noqa: E402
from tasks.measure import build  # noqa: E402
from training.command_line import number, one_line_errors  # noqa: E402

MOST_APART = 1e-3  # of a class' output from ONNX Runtime's


@dataclass
class Runtime:
    label: str
    install: str = ""
    avx2: dict[str, str] | None = None  # the environment in which it does without AVX-512


ONEDNN_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # OpenVINO has a oneDNN of its own
RUNTIMES = {
    "paddle": Runtime("Paddle Inference", "paddlepaddle", ONEDNN_AVX2),
    "onnxruntime": Runtime("ONNX Runtime", "onnxruntime"),
    "openvino": Runtime("OpenVINO", "openvino", ONEDNN_AVX2),
    "deepsparse": Runtime(
        "DeepSparse",
        'deepsparse==1.8.0 sparsezoo "numpy<2" "onnx<1.15", with Python 3.8 to 3.11',
    ),
    "sparse": Runtime("sparse runtime", avx2={}),
}
DENSE = ("paddle", "onnxruntime", "openvino")  # do not look for zeros
REFERENCE = "onnxruntime"
SETS = {"avx512": "AVX-512", "avx2": "AVX2", "plain": "C++"}


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


class Peer:
    """Asks a process with one runtime; it is stopped while nothing is asked of it.

    Raises:
        ChildProcessError: the runtime could not be started.
    """

    def __init__(self, name: str, instruction_set: str, threads: int, folder: Path,
                 networks: list[str], python: str):  # fmt: skip
        self.name, self.instruction_set, self.networks = name, instruction_set, networks
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in end())
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NM_DISABLE_ANALYTICS": "1"}
        if instruction_set != kernels.instruction_sets()[0]:
            environment.update(RUNTIMES[name].avx2)
        self.process = subprocess.Popen(
            [python, "-W", "ignore", *PEER, "--serve",
             name, instruction_set, str(threads), str(folder), *networks],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=environment,
        )  # fmt: skip
        try:
            hello = self._answer()
            if "error" in hello:
                raise ChildProcessError(hello["error"])
        except BaseException:
            self.end()
            raise
        self.outputs = {key: np.array(output) for key, output in hello["outputs"].items()}
        self.version = hello["version"]
        self.differences: dict[str, float] = {}
        self.process.send_signal(signal.SIGSTOP)

    def compare(self, reference: Peer) -> None:
        for network, output in self.outputs.items():
            apart = float(abs(output - reference.outputs[network]).max())
            if not apart <= MOST_APART:
                raise ChildProcessError(
                    f"at {float(network):.0%} it differs from {reference.name} by {apart:.1e}"
                )
            self.differences[network] = apart

    def seconds(self, network: str) -> float:
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps({"network": network}), file=self.process.stdin, flush=True)
        seconds = self._answer()["seconds"]
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["no message"])[-1]
            raise ChildProcessError(f"the process with {self.name} ended: {last}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            file.close()


def start_peers(stack: contextlib.ExitStack, args, folder: Path, threads: int) -> list[Peer]:
    """Those that can be started and compute the same, the reference first."""
    peers: list[Peer] = []
    for name in sorted(args.peers, key=lambda name: name != REFERENCE):
        runtime = RUNTIMES[name]
        networks = [f"{s:g}" for s in args.sparsities if s > 0 or name != "sparse"]
        python = getattr(args, f"{name}_python", sys.executable)
        sets = kernels.instruction_sets()[:1] if runtime.avx2 is None else args.instruction_sets
        for instruction_set in sets:
            try:
                peer = Peer(name, instruction_set, threads, folder, networks, python)
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


def time_turns(peers: list[Peer], rounds: int) -> dict[tuple[Peer, str], list[float]]:
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
        "threads": threads, "cpu": f"{cpu_model()}, {os.cpu_count()} cores",
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


WORDS = {  # heads of the tables, and what has another name in them
    "en": {
        "alike": ["instructions", "pictures", "threads"],
        "fastest": "fastest dense runtime",
        "runtime": "runtime",
        "dense": "dense",
        "sparse": "sparse runtime",
        "limit": "the limit",
        "note": "Milliseconds a run (times as fast as dense). Dense: the fastest of Paddle "
        "Inference (with oneDNN), ONNX Runtime and OpenVINO on the dense network, with the same "
        "instructions, pictures and threads. ONNX Runtime and DeepSparse cannot be restricted to "
        "AVX2.",
    },
    "zh": {
        "alike": ["指令集", "图片数", "线程数"],
        "fastest": "最快的稠密运行时",
        "runtime": "运行时",
        "dense": "稠密",
        "sparse": "稀疏运行时",
        "limit": "极限",
        "note": "每次运行的毫秒数（括号内为相对稠密的倍数）。“稠密”指 Paddle Inference"
        "（启用 oneDNN）、ONNX Runtime 和 OpenVINO 中，在指令集、图片数和线程数相同时"
        "运行稠密网络最快的一个。ONNX Runtime 和 DeepSparse 无法限制为 AVX2。",
    },
}


def tables(records: list[dict], language: str = "en") -> tuple[str, str]:
    """The sparse runtime beside the fastest dense one, and all medians; a column a sparsity."""
    words = WORDS[language]
    labels = {name: runtime.label for name, runtime in RUNTIMES.items()}
    labels.update({name: words[name] for name in ("sparse", "limit")})
    names, sets = list(labels), list(SETS)
    sparsities = sorted({r["sparsity"] for r in records} - {0})
    rows: dict = {}  # by what is compared with one another and by runtime: ms by sparsity
    dense: dict = {}
    for r in records:
        alike = r["batch"], sets.index(r["instructions"]), r["threads"]
        rows.setdefault((*alike, names.index(r["runtime"])), {})[r["sparsity"]] = r["ms"]
        if r["runtime"] in DENSE and r["sparsity"] == 0:
            dense.setdefault(alike, []).append((r["ms"], labels[r["runtime"]]))
    short, full = [], []
    for (*alike, runtime), found in sorted(rows.items()):
        fastest, label = min(dense.get(tuple(alike), [(0, "")]))
        cells = []
        for sparsity in (0, *sparsities):
            ms = found.get(sparsity)
            times = f" ({fastest / ms:.2f})" if ms and fastest else ""
            cells.append(f"{ms:.2f}{times}" if ms else "")
        batch, instructions, threads = alike
        common = [SETS[sets[instructions]], str(batch), str(threads)]
        full.append([labels[names[runtime]], *common, *cells])
        if names[runtime] == "sparse" and fastest:
            short.append([*common, f"{fastest:.2f} ({label})", *cells[1:]])
    shares = [f"{sparsity:.0%}" for sparsity in sparsities]
    return (
        markdown([*words["alike"], words["fastest"], *shares], short),
        markdown([words["runtime"], *words["alike"], words["dense"], *shares], full),
    )


def about(records: list[dict]) -> str:
    r = records[0]
    versions = {
        f"{RUNTIMES[r['runtime']].label} {r['version']}" for r in records if r.get("version")
    }
    return (
        f"MobileNetV1 x{r['scale']}, pictures of {r['image_size']}x{r['image_size']}, float32; "
        f"medians of {r['rounds']} rounds\n{r['cpu']}; {', '.join(sorted(versions))}"
    )


def read_records(paths: list[Path]) -> list[dict]:
    try:
        records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    except ValueError:  # told below
        records = []
    if not records or not all(isinstance(r, dict) and "instructions" in r for r in records):
        raise ValueError(f"--table takes what --out wrote, not {', '.join(map(str, paths))}")
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
    add("--language", choices=list(WORDS), default="en", help="of the table (default: en)")
    args = parser.parse_args(argv)
    records = read_records(args.table) if args.table else measure_all(args)
    note = WORDS[args.language]["note"]
    print(about(records), *tables(records, args.language), note, sep="\n\n")
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
