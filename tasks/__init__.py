"""What can be trained: a module each, behind the same doors. (training/options.py: the options.)

- `DATA`, `MODELS`: names of its data sets and networks
- `num_classes(options)`: of the data set
- `make_dataset`, `make_model`, `loss`; a data set may have `classes`, names in the order of labels
- `input_shape(options)`: [C, H, W] of a test's picture
- `counts`, `COUNTED`: what is counted at every step of training
- `Metric`, `MEASURED`: what is measured on the test set; the first one tells what is best;
  a metric may have `table()` and `show(folder)`, for evaluate.py
"""

from __future__ import annotations

from tasks import classification, detection

TASKS = {data: task for task in (classification, detection) for data in task.DATA}
