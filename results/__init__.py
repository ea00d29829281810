"""The recorded trainings, their pictures, and the programs that make both."""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
