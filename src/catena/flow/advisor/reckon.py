"""Numbers with their formulas: what is printed as a formula is what was computed.

    reckon("cache", "2 * layers * width * 2", "bytes", layers=32, width=1024) -> Number(value=131072, ...)

A formula is arithmetic on named numbers, with min, max and ceil; it is read from its syntax tree, nothing is run.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max, "ceil": math.ceil}


@dataclass(frozen=True, slots=True)
class Number:
    """A number, its unit, the formula that it comes from, and what went into it."""

    name: str
    value: float
    unit: str
    formula: str
    inputs: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Return it with plain names."""
        fields = {"name": self.name, "value": self.value, "unit": self.unit, "formula": self.formula}
        return {**fields, "inputs": dict(self.inputs)}

    def line(self) -> str:
        """Return it on one line: `name = value unit = formula; inputs`."""
        given = ", ".join(f"{name} {shown(value)}" for name, value in self.inputs.items())
        return f"{self.name} = {shown(self.value)} {self.unit}".rstrip() + f" = {self.formula}; {given}"


def shown(value: float) -> str:
    """Return a number as people read it: four digits, an exponent where it is large."""
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"


def reckon(name: str, formula: str, unit: str = "", **inputs: float) -> Number:
    """Compute a formula; every name in it is one of `inputs`, and every input stands in it."""
    used: set[str] = set()
    value = _value(_tree(formula), inputs, used)
    assert used == set(inputs), f"{name}: {used ^ set(inputs)}"
    return Number(name, value, unit, formula, inputs)


@cache
def _tree(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


def _value(node: ast.expr, inputs: Mapping[str, float], used: set[str]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            used.add(name)
            return inputs[name]
        case ast.BinOp(left=left, op=sign, right=right):
            return _OPERATORS[type(sign)](_value(left, inputs, used), _value(right, inputs, used))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_value(argument, inputs, used) for argument in arguments))
    raise ValueError(f"a formula cannot have {ast.dump(node)}")
