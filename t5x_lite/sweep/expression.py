"""Arithmetic in sweep files, such as `round(model.embed * 8 / 3)`: numbers, names of keys, and a few functions."""

import ast
import math
import operator
from collections.abc import Callable
from typing import TypeAlias

from t5x_lite.errors import UserError

Number: TypeAlias = int | float

OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    "round": round,
    "min": min,
    "max": max,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "log": math.log,
    "log2": math.log2,
    "exp": math.exp,
}


def evaluate(text: str, value_of: Callable[[str], object]) -> Number:
    """Evaluate an expression.

    Args:
        text: the expression.
        value_of: returns the value of a dotted name, or raises KeyError.

    Raises:
        UserError: the text is not arithmetic, has an unknown name, or has no number as its value.
    """
    try:
        syntax_tree = ast.parse(text.strip(), mode="eval")
        return _evaluate_node(syntax_tree.body, text, value_of)
    except KeyError as error:
        raise UserError(f"{text!r}: {error.args[0]} is not set by the config or the sweep") from None
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"{text!r}: cannot be evaluated: {error}") from None


def _evaluate_node(node: ast.AST, text: str, value_of: Callable[[str], object]) -> Number:
    def evaluate_operand(operand: ast.AST) -> Number:
        return _evaluate_node(operand, text, value_of)

    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate_operand(left), evaluate_operand(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](evaluate_operand(operand))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*[evaluate_operand(argument) for argument in arguments])
        case ast.Name() | ast.Attribute():
            return _number_named(ast.unparse(node), text, value_of)
    raise UserError(
        f"{text!r}: an expression holds only numbers, names, + - * / // % ** and the functions {', '.join(FUNCTIONS)}"
    )


def _number_named(name: str, text: str, value_of: Callable[[str], object]) -> Number:
    value = value_of(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{text!r}: {name} is {value!r}, not a number")
    return value
