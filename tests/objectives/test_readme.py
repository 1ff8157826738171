"""The objective that README shows runs, and has fewer than 40 lines."""

import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from t5x_lite.objectives.features import segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.schema import setting
from tests.objectives.vocabulary import context, row


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
        "Features": Features,
        "np": np,
        "segments_of": segments_of,
        "__name__": "deletion",
    }
    exec(source, names)
    deletion = names["Deletion"](rate=0.5)
    features = deletion.example(row(np.arange(10, 26)), context(16, "encoder_decoder"), np.random.default_rng(0))
    inputs = features["tokens"][features["tokens"] > 0].tolist()
    targets = features["targets"][features["targets"] > 0].tolist()
    assert targets == [*range(10, 26)]
    assert 0 < len(inputs) < 16
    assert [token for token in targets if token in inputs] == inputs
