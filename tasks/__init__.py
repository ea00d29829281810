"""What can be trained: a module for each task, all with the same interface.

`options` are those of training/options.py: `data`, `data_dir`, `model`, `scale`, `image_size`,
`num_classes`, `seed`, `classes`, and a few that only this task has. A task is a module with

- `DATA`, `MODELS`: the names of its data sets (--data) and networks (--model). Those of data sets
  stand in training/options.py, too, which is imported before Paddle.
- `num_classes(options) -> int`: what --num_classes is where it is left out.
- `input_shape(options) -> (C, H, W)`: of a test picture.
- `make_dataset(options, mode) -> paddle.io.Dataset`: mode is 'train' or 'val'. An item is a tuple
  of an image, float32 [C, H, W], and its targets, numbers or arrays, which a batch stacks. Its
  attribute `epoch` is set before each epoch; `mode` may be set to 'val' later, so that pictures to
  train on are prepared as in a test. It may have `classes`, names in the order of labels.
  With --train_sizes its keys are (index, side) in place of an index.
- `make_model(options, pretrained=False) -> paddle.nn.Layer`: a network that takes images, float32
  [N, C, H, W]; `pretrained` for Paddle's ImageNet weights.
- `loss(outputs, targets) -> Tensor`: a scalar, the mean over a batch, of which train.py takes the
  gradient. `outputs` are what the network gave, `targets` a list with a tensor for each column.
  A classifier's has a further argument, --label_smoothing; its `main_output(outputs)` are the
  logits [N, num_classes], with which a --teacher's are compared.
- `COUNTED`, `counts(outputs, targets, loss) -> Tensor`: names of what is counted in training, and
  float64 [len(COUNTED) + 1] on the device: sums of these over the batch, and its samples.
- `MEASURED`, `Metric(dataset)`: names of what is measured on the test set, the first one deciding
  which weights are best (higher is better), and what measures it: `add(outputs, targets)` for each
  batch, then `result()`, a dict of a float for each of MEASURED and `samples`, over all ranks.
  For evaluate.py, after that and of one rank: `per_class()`, a list with a dict for each class, its
  name under `class`; and it may have `show(folder)`, which draws into files.
- `to_input(options, pixels) -> array`: any picture, RGB uint8 [H, W, 3], as one of the test set.
- `predictions(outputs, pixels, names) -> list[dict]`: what the network says of that picture, alone
  in its batch, the likeliest first: `probability` or `score`, `label`, `class`, its name or else
  the label as text, and maybe `box`. What these are drawn by, if it is there, is
  `draw(pixels, predictions, path)`.

What a user can mend is raised as a ValueError or FileNotFoundError of one line.
"""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

from tasks import classification, detection

TASKS = {data: task for task in (classification, detection) for data in task.DATA}
