"""Refuse words and forms that this project does not use in its Python files.

    python tools/check_words.py [FILE|FOLDER …]      (default: t5x_lite and tools, from the root)

Three things are checked: names of variables, parameters, functions, classes and attributes; the first words and phrases
of docstrings and comments; and assignments of several values in one statement, `a, b = x, y`, unless they are a swap.
Each error is one line, `file:line: word: use … instead`, and makes the exit code 1.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PATHS = ("t5x_lite", "tools")

DESCRIBE = "a noun that says what it is"
NAMES: Mapping[str, str] = {
    "own": "the thing that it is: layer_params, run_tasks",
    "found": "the thing that was read or selected: restored_state, matches",
    "one": "the singular of the thing: layer, weight, item",
    "made": "the thing that was built: batch, optimizer",
    "given": "the argument's subject: overrides, requested_step",
    "kept": "what is kept: selected_rows, retained_steps",
    "wanted": "requested or required, and of what: required_keys",
    "told": DESCRIBE,
    "held": "what is locked, stored or reserved: lock, held_out_points",
    "asked": "requested, and of what: requested_tasks",
    "these": "the plural of the thing: rows, layers",
    "those": "the plural of the thing: rows, layers",
    "beside": "the neighbour that it is: sibling, extra_inputs",
    "there": "the other side by its name: remote_value, reference",
    "here": "this side by its name: local_value",
    "who": "the process, host or user that it is",
    "whole": "full, complete or unsharded, and of what: full_batch",
    "taken": "selected, and of what: selected_rows",
    "seen": "observed, and of what: tokens_observed",
    "everything": "the things that it holds: parameters, state",
    "say": "report, print or log",
    "said": "message",
    "tell": "report",
    "foretold": "predicted or forecast, and of what",
    "settle": "flush",
    "begun": "start_step",
    "busy": "locked_message",
    "refusal": "unsupported_reason",
    "worthwhile": "select_shapes",
    "stairs": "causal_blocks",
    "turned": "heads_first, or transpose_heads",
    "laid": "reshard",
    "blueprint": "ModelSpec, or abstract parameters",
    "Blueprint": "ModelSpec",
    "Places": "TokenPositions",
    "Facts": "KernelRequirements",
    "KeysValues": "KVCache",
    "FAR_BELOW": "MASK_VALUE",
    "NOTHING": "MASK_VALUE",
}
"""Names that are refused as a whole, each with what to use instead."""
PARTS_OF_NAMES = frozenset({"own", "told", "asked", "wanted", "beside", "there", "here", "who"})
"""Names of `NAMES` that are refused as parts of longer names too, such as `own_tasks`."""
PARAMETERS: Mapping[str, str] = {"of": "the argument's subject: platform, config, tree"}
"""Names that are refused for parameters."""

OPENINGS = frozenset({"What", "Whether", "Which", "Who", "How", "Where", "When", "That", "This", "Those", "These"})
"""First words that are refused in docstrings."""
SHORTEST_DOCSTRING = 4
"""Least number of characters of a docstring."""
PHRASES: Mapping[str, str] = {
    r"(?:is|are|was|were) told": "receives, or loads",
    r"(?:is|are|was|were) said": "reports, or raises",
    r"for ?ever and ever|stands for ?ever": "is never deleted",
    r"reads at(?! once| one time)": "reads, and from where",
    r"For people\.": "a sentence that says what it prints",
    r"foretells?|foretold": "forecast, or predict",
    r"[Bb]lueprints?": "model spec, or abstract parameters",
    r"involuntary": "unintended",
    r"lies? (?:with|beside)": "is stored with, or next to",
    r"looks? at itself": "attends to itself",
    r"worked out": "computed",
}
"""Regular expressions that are refused in docstrings and comments, each with what to use instead."""


@dataclass(frozen=True, order=True)
class Fault:
    """A word at a line of a file, and what to use instead."""

    line: int
    word: str
    instead: str


def find_faults(source: str) -> list[Fault]:
    """Return the faults of a Python file in the order of its lines, each once."""
    tree = ast.parse(source)
    faults = {*_check_names(tree), *_check_docstrings(tree), *_check_assignments(tree), *_check_comments(source)}
    return sorted(faults)


def _check_names(tree: ast.Module) -> Iterator[Fault]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 1)
        for name in _names_bound_by(node):
            bare_name = name.strip("_")
            if bare_name in NAMES:
                yield Fault(line, name, NAMES[bare_name])
            parts = bare_name.lower().split("_")
            if parts[0] == "test":  # the name of a test is a sentence
                continue
            for part in PARTS_OF_NAMES.intersection(parts):
                yield Fault(line, name, NAMES[part])
            if isinstance(node, ast.arg) and bare_name in PARAMETERS:
                yield Fault(line, name, PARAMETERS[bare_name])


def _names_bound_by(node: ast.AST) -> list[str]:
    """Return the names that a node defines; names that it only uses were defined elsewhere, perhaps by a library."""
    if isinstance(node, ast.Name | ast.Attribute):
        if not isinstance(node.ctx, ast.Store):
            return []
        return [node.id if isinstance(node, ast.Name) else node.attr]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.alias) and node.asname:
        return [node.asname]
    return []


def _check_docstrings(tree: ast.Module) -> Iterator[Fault]:
    """Check docstrings, and the strings after attributes and constants that describe them."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        text = node.value.value
        if not isinstance(text, str):
            continue
        words = text.split()
        if len(text.strip()) < SHORTEST_DOCSTRING:
            yield Fault(node.lineno, text.strip(), "a sentence, or no docstring")
        elif words[0] in OPENINGS:
            yield Fault(node.lineno, words[0], "a sentence that begins with a verb, such as Return, or with a noun")
        yield from _check_phrases(text, node.lineno)


def _check_comments(source: str) -> Iterator[Fault]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _check_phrases(token.string, token.start[0])


def _check_phrases(text: str, first_line: int) -> Iterator[Fault]:
    for pattern, instead in PHRASES.items():
        flexible_pattern = pattern.replace(" ", r"\s+")
        for match in re.finditer(rf"(?<!\w)(?:{flexible_pattern})(?!\w)", text):
            line = first_line + text.count("\n", 0, match.start())
            yield Fault(line, " ".join(match[0].split()), instead)


def _check_assignments(tree: ast.Module) -> Iterator[Fault]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
            continue
        values = {ast.unparse(element) for element in node.value.elts}
        for target in node.targets:
            if not isinstance(target, ast.Tuple):
                continue
            is_swap = values == {ast.unparse(element) for element in target.elts}
            if not is_swap:
                yield Fault(node.lineno, ast.unparse(node), "one statement for each value")


def main(arguments: Sequence[str]) -> int:
    """Print the faults of all files, and return the exit code."""
    exit_code = 0
    for path in arguments or DEFAULT_PATHS:
        root = Path(path)
        files = [root] if root.is_file() else sorted(root.rglob("*.py"))
        for file in files:
            for fault in find_faults(file.read_text(encoding="utf-8")):
                print(f"{file}:{fault.line}: {fault.word}: use {fault.instead} instead")
                exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
