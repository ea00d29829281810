"""A program for every measured number in the documents: python -m benchmarks.NAME --help."""

import training.command_line  # noqa: F401  (before paddle, of which it hides a warning)
