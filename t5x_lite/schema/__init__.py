"""Typed configurations: declare settings, read them from YAML, override, validate and explain them.

Nothing here knows a particular setting; `config.py` and the `config.py` of each package declare them.
"""

from t5x_lite.schema.explanation import Explanation, explain, print_explained
from t5x_lite.schema.settings import (
    Config,
    Int,
    OneOf,
    Settings,
    Strings,
    component_name,
    differences,
    dotted,
    flatten,
    setting,
)
from t5x_lite.schema.sources import COMMAND_LINE, Sources, merge, merge_overrides, read
from t5x_lite.schema.validation import first_problem, validate
from t5x_lite.schema.yaml_text import dump

__all__ = [
    "COMMAND_LINE",
    "Config",
    "Explanation",
    "Int",
    "OneOf",
    "Settings",
    "Sources",
    "Strings",
    "component_name",
    "differences",
    "dotted",
    "dump",
    "explain",
    "first_problem",
    "flatten",
    "merge",
    "merge_overrides",
    "print_explained",
    "read",
    "setting",
    "validate",
]
