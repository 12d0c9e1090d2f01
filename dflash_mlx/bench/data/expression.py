r"""The value of an expression in LaTeX: numbers, letters, + - * / ^, fractions, roots and pi.

Letters get values that a place decides, so expressions that agree at two places are the same for
all purposes here; a run of three letters or more is a word and has no value. Values are fractions
as long as they stay rational.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

Value = Fraction | complex

EXACT_BITS = 10_000  # of a power; larger ones are computed in floating point
PLACES = (3, 8)
TOKEN = re.compile(r"\s*(\d+\.\d+|\.\d+|\d+|\\[a-zA-Z]+|[a-zA-Z](?![a-zA-Z]{2})|[-+*/^(){}\[\]])")


class _NoValue(ValueError):
    """What is not an expression that can be evaluated."""


def equal(given: str, expected: str) -> bool:
    """Whether both are expressions and have the same value wherever that is tried."""
    try:
        return all(_close(_Reader(given, p).all(), _Reader(expected, p).all()) for p in PLACES)
    except (ArithmeticError, ValueError, RecursionError):
        return False


def _close(one: Value, other: Value) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    one, other = complex(one), complex(other)
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))


class _Reader:
    """Evaluates an expression by recursive descent; letters get values that `place` decides."""

    def __init__(self, text: str, place: int) -> None:
        self.tokens = self._tokens(text)
        self.place = place

    @staticmethod
    def _tokens(text: str) -> list[str]:
        found, end = [], 0
        text = text.rstrip()
        while end < len(text):
            match = TOKEN.match(text, end)
            if match is None:
                raise _NoValue(text[end:])
            found.append(match[1])
            end = match.end()
        return found[::-1]  # the next one is the last

    def all(self) -> Value:
        value = self.sum()
        if self.tokens:
            raise _NoValue(self.tokens[-1])
        return value

    def next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, expected: str) -> None:
        if self.next() != expected:
            raise _NoValue(f"{self.next()!r}, expected {expected!r}")
        self.tokens.pop()

    def sum(self) -> Value:
        value = self.product()
        while self.next() in ("+", "-"):
            sign = 1 if self.tokens.pop() == "+" else -1
            value = value + sign * self.product()
        return value

    def product(self) -> Value:
        value = self.signed()
        while token := self.next():
            if token in ("*", "/"):
                self.tokens.pop()
                factor = self.signed()
                value = value / factor if token == "/" else value * factor
            elif token[0].isalpha() or token[0] in r"\({":
                value = value * self.power()
            else:
                break
        return value

    def signed(self) -> Value:
        if self.next() in ("+", "-"):
            sign = 1 if self.tokens.pop() == "+" else -1
            return sign * self.signed()
        return self.power()

    def power(self) -> Value:
        base = self.atom()
        if self.next() != "^":
            return base
        self.tokens.pop()
        return _power(base, self.argument())

    def atom(self) -> Value:
        token = self.next()
        if token[:1].isdigit() or token[:1] == ".":
            self.tokens.pop()
            return self.mixed(Fraction(token))
        if token in ("(", "{"):
            self.tokens.pop()
            value = self.sum()
            self.take(")" if token == "(" else "}")
            return value
        return self.named()

    def mixed(self, whole: Fraction) -> Value:
        """A whole number, with a fraction right behind it if there is one, as in 2 1/3."""
        if self.next() == r"\frac" and whole.denominator == 1:
            return whole + self.named()
        return whole

    def named(self) -> Value:
        token = self.next()
        self.take(token or "more")
        if token == r"\frac":
            upper = self.argument()
            return upper / self.argument()
        if token == r"\sqrt":
            return self.root()
        if token == r"\pi":
            return complex(math.pi)
        if token == "i":
            return 1j
        if token.isalpha():
            return Fraction(ord(token) * 2 + 1, self.place)
        raise _NoValue(token)

    def root(self) -> Value:
        degree: Value = Fraction(2)
        if self.next() == "[":
            self.tokens.pop()
            degree = self.sum()
            self.take("]")
        value = self.argument()
        odd = isinstance(degree, Fraction) and degree.denominator == 1 and degree % 2 == 1
        if odd and isinstance(value, Fraction) and value < 0:
            return -(complex(-value) ** complex(1 / degree))
        return complex(value) ** complex(1 / degree)

    def argument(self) -> Value:
        r"""What a command or ^ applies to: a group, or one digit as in `\frac12`."""
        token = self.next()
        if token.isdigit() and len(token) > 1:
            self.tokens[-1] = token[1:]
            return Fraction(token[0])
        if token.isdigit():
            self.tokens.pop()
            return Fraction(token)
        return self.signed() if token == "-" else self.atom()


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator == 1 and abs(exponent) * bits <= EXACT_BITS:
            return Fraction(base ** int(exponent))
    return complex(base) ** complex(exponent)
