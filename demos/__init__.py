"""What pruning does, on small data, in minutes: python -m demos.NAME --help."""

import training.command_line  # noqa: F401  (before paddle, of which it hides a warning)
