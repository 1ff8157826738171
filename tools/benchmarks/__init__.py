"""The tables of `tools/bench.py`, one module each. `measure(rounds, quick)` returns the rows of a table."""
