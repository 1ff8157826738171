"""The tables of `tools/bench.py`, one file each."""
