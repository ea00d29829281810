"""A program for every measured number in the documents: python -m benchmarks.NAME --help."""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
