"""What train.py, evaluate.py and export.py are made of.

- `command_line`, `options`, `trained`: what a user types, and what a checkpoint adds to it
- `initial`: the weights and the seed that a training starts with
- `run`: all that takes part in a training, and how far it is
- `train_state`, `checkpoint`, `folders`: what is saved, in which files; `resume`: going on from it
- `dry_run`: what a training would cost
- `ranks`, `process`, `stopping`: several processes, the device, signals and faults
- `report`: lines to read; `loggers`: the same for TensorBoard and VisualDL
"""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
