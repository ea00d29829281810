"""What reads data sets from files. Nothing here imports another module of the project."""

import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
