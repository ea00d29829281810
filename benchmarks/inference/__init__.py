"""The sparse runtime beside other runtimes, and what was recorded."""
