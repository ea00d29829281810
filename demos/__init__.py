"""What pruning does, on small data, in minutes: python -m demos.NAME --help."""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
