"""What pruning buys: bytes and milliseconds of the networks of results.experiments, exported.

    python -m results.deployed --out my_results --data imagenette

Every row's network of seed 0 runs in the sparse runtime, a dense control's in ONNX Runtime, too:
one picture on one thread, all in turns. A line each in OUT/deployed.jsonl.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from pathlib import Path

import paddle

import export
import runtimes
from benchmarks.report import cpu_name
from results.experiments import Suite, read_lines
from results.rows import DATA, DENSE, ROWS
from runtimes import cost
from tasks.classification import input_shape
from training import train_state
from training.command_line import Parser, number, one_line_errors
from training.options import parse_training


def measure(out: Path, data: str, seconds: float) -> list[dict]:
    suite = Suite(out, Path())
    rows = [row for row in ROWS if row.data == data]
    rows = [row for row in rows if (suite.folder(row, 0) / train_state.STATE).exists()]
    if not rows:
        raise ValueError(f"{out} has no trained network of {data}")
    shape = input_shape(parse_training("", DATA[data].options))
    with tempfile.TemporaryDirectory() as exports:
        forms = []
        for row in rows:
            folder, to = suite.folder(row, 0), Path(exports) / row.full_name
            dense = row.options[:2] == DENSE and not row.is_start
            for runtime in ("sparse", "onnx") if dense else ("sparse",):
                export.main(["--pruned_model", str(folder), "--format", runtime, "--out", str(to)])
                forms.append((runtime, to))
        found = measure_exports(forms, shape, seconds)
    return [
        {"row": folder.name, "runtime": runtime, **found[runtime, folder], "threads": 1,
         "hardware": cpu_name(), "date": str(datetime.date.today())}
        for runtime, folder in forms
    ]  # fmt: skip


def measure_exports(
    forms: list[tuple[str, Path]], shape: tuple[int, int, int], seconds: float
) -> dict[tuple[str, Path], dict]:
    """Bytes, and milliseconds of one picture on one thread, of networks that take turns.

    Args:
        forms: runtime and folder, as export.py's --format and --out.
        shape: of a picture, (C, H, W).
        seconds: of timing, of all together.
    """
    networks = {form: runtimes.load(*form, batch=1, threads=1) for form in forms}
    taken = cost.medians(networks, paddle.randn([1, *shape]), seconds)
    return {
        (name, folder): {
            "bytes": sum((folder / file).stat().st_size for file in runtimes.files(name, folder)),
            "ms": round(1000 * each, 4),
        }
        for (name, folder), each in taken.items()
    }


@one_line_errors
def main(argv=None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("my_results"))
    parser.add_argument("--data", choices=DATA, default="imagenette")
    parser.add_argument(
        "--seconds", type=number(float, 0), default=60.0, help="of timing (%(default)s)"
    )
    args = parser.parse_args(argv)
    path = args.out / "deployed.jsonl"
    found = measure(args.out, args.data, args.seconds)
    kept = [record for record in read_lines(path) if not record["row"].startswith(f"{args.data}-")]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*kept, *found]))
    for record in found:
        print("{row} {runtime}: {bytes:,} bytes, {ms} ms".format(**record))


if __name__ == "__main__":
    sys.exit(main())
