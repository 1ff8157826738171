"""Follow a run from a terminal: `t5x-lite watch RUN`."""
