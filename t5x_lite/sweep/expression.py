"""Arithmetic in sweep files, such as `round(model.embed * 8 / 3)`: numbers, names and a few functions, nothing else."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from t5x_lite.errors import UserError

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
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
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{"round": round, "min": min, "max": max},
    **{name: getattr(math, name) for name in ("floor", "ceil", "sqrt", "log", "log2", "exp")},
}


def evaluate(text: str, value_of: Callable[[str], Any]) -> float | int:
    """The number that an expression stands for; `value_of` gives what a dotted name stands for, or raises KeyError.

    Raises:
        UserError: not arithmetic, an unknown name, or no number comes out.
    """

    def number(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](number(left), number(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](number(operand))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(number, arguments))
            case ast.Name() | ast.Attribute():
                found = value_of(ast.unparse(node))
                if isinstance(found, int | float) and not isinstance(found, bool):
                    return found
                raise UserError(f"{text!r}: {ast.unparse(node)} is {found!r}, not a number")
        raise UserError(f"{text!r}: only numbers, names, + - * / // % ** and {', '.join(FUNCTIONS)} are understood")

    try:
        return number(ast.parse(text.strip(), mode="eval").body)
    except KeyError as error:
        raise UserError(f"{text!r}: {error.args[0]} is not set by the config or the sweep") from None
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"{text!r}: cannot be evaluated: {error}") from None
