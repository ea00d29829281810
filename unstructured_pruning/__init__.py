"""What unstructured_pruner.py is made of. Needs Paddle and numpy alone."""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
