"""The recorded trainings, their pictures, and the programs that make both."""

import training.command_line  # noqa: F401  (before paddle, of which it hides a warning)
