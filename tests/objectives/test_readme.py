"""The objective that README shows is code that runs, in under 40 lines."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from t5x_lite.objectives.features import InputsTargets, segments_of
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.schema import setting
from tests.objectives.vocabulary import row, task


def test_the_shown_objective_makes_features() -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (source,) = re.findall(r"```python\n(class .*?)```", text, re.DOTALL)
    assert len(source.splitlines()) < 40
    names = {
        "InputsTargets": InputsTargets,
        "ClassVar": ClassVar,
        "setting": setting,
        "ExampleContext": ExampleContext,
        "TokenRow": TokenRow,
    }
    names |= {"Features": Features, "np": np, "segments_of": segments_of, "__name__": "deletion"}
    exec(source, names)
    made = names["Deletion"](rate=0.5)
    found = made.example(row(np.arange(10, 26)), task(16, "encoder_decoder"), np.random.default_rng(0))
    inputs, targets = (found[name][found[name] > 0].tolist() for name in ("tokens", "targets"))
    assert targets == [*range(10, 26)]
    assert 0 < len(inputs) < 16
    assert [token for token in targets if token in inputs] == inputs
