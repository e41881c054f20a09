"""What a sweep varies: one parameter of the file in, a way to draw and to write its values out.

A `Parameter` names a key and a distribution of W&B's list. Its `draw` is what the optimiser sees
(a range, perhaps logarithmic, or a list of choices) and `value` turns that into what a trial gets:
rounding to multiples of q, and quantiles for distributions that the optimiser does not have
(normal, choices with probabilities). Left out: the optimiser itself (`sweep_study.py`).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from saccade.config.layers import Problem, Value
from saccade.pipeline.pipeline_file import hint_for

FIELDS = ("values", "value", "min", "max", "distribution", "probabilities", "mu", "sigma", "q")
RANGES = (
    "uniform", "int_uniform", "q_uniform", "log_uniform", "log_uniform_values", "q_log_uniform",
    "q_log_uniform_values", "inv_log_uniform", "inv_log_uniform_values",
)  # fmt: skip
BELLS = ("normal", "q_normal", "log_normal", "q_log_normal")
CHOICES = ("categorical", "categorical_w_probabilities", "constant")
DISTRIBUTIONS = (*CHOICES, *RANGES, *BELLS)
EDGE = 1e-6
"""Quantiles are drawn from EDGE to 1 - EDGE: a normal value is finite (within 4.8 sigma)."""

MOST_POINTS = 10_000
"""More trials than this no grid is meant to have."""
LARGEST_EXPONENT = 700.0
"""e to the power of more is no number any more."""

Draw = Literal["choice", "float", "log", "int"]


@dataclass(frozen=True)
class Parameter:
    """One parameter: `key` is what it sets, `name` how the file calls it, `where` its line."""

    key: str
    name: str
    where: str
    draw: Draw
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    q: float | None = None
    bell: NormalDist | None = None
    exponential: bool = False
    weights: tuple[float, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether there is nothing to draw."""
        return self.draw == "choice" and len(self.choices) == 1

    def value(self, drawn: Any) -> Any:
        """What a trial gets for a drawn number (or for the JSON text of a choice)."""
        if self.draw == "choice":
            return json.loads(drawn)
        if self.weights:
            return self.choices[quantile_of(self.weights, float(drawn))]
        if self.draw == "int":
            return int(drawn)
        found = float(drawn)
        if self.bell is not None:
            found = self.bell.inv_cdf(found)
            found = math.exp(found) if self.exponential else found
        if self.q is None:
            return found
        stepped = round(found / self.q) * self.q
        return int(stepped) if float(self.q).is_integer() else float(f"{stepped:.12g}")

    def texts(self) -> list[str]:
        """The choices as JSON, which any database can keep."""
        return [json.dumps(one) for one in self.choices]

    @property
    def size(self) -> int | None:
        """How many values can be drawn; None when there is no end to them."""
        if self.draw == "choice":
            return len(self.choices)
        if self.weights:
            return sum(weight > 0 for weight in self.weights)
        if self.draw == "int":
            return int(self.high) - int(self.low) + 1
        if self.q is None or self.bell is not None:
            return None
        return math.floor(self.high / self.q) - math.ceil(self.low / self.q) + 1

    def points(self) -> list[Any] | None:
        """Everything that can be drawn, in order, or None when there is no end to it."""
        if self.draw == "choice":
            return self.texts()
        if self.draw == "int":
            return list(range(int(self.low), int(self.high) + 1))
        if self.weights:
            edges = [0.0, *_running(self.weights)]
            return [(a + b) / 2 for a, b in itertools.pairwise(edges) if b > a]
        if self.q is not None and self.bell is None:
            first, last = math.ceil(self.low / self.q), math.floor(self.high / self.q)
            return [float(f"{one * self.q:.12g}") for one in range(first, last + 1)]
        return None

    def probes(self) -> list[Any]:
        """Values worth checking against the schema: every choice, or both ends."""
        if self.draw == "choice":
            return list(self.choices)
        if self.weights:
            return list(self.choices)
        if self.bell is not None:
            return [self.value(0.5)]
        return [self.value(self.low), self.value(self.high)]


def quantile_of(weights: Sequence[float], at: float) -> int:
    """The position whose share of the running sum contains `at`."""
    for position, edge in enumerate(_running(weights)):
        if at < edge:
            return position
    return max(i for i, weight in enumerate(weights) if weight > 0)


def _running(weights: Sequence[float]) -> list[float]:
    total, sums = sum(weights), 0.0
    return [(sums := sums + weight) / total for weight in weights]


def read_parameter(
    key: str,
    fields: Mapping[str, Value],
    *,
    name: str,
    method: str,
    problems: list[Problem],
) -> Parameter | None:
    """Check one parameter's fields; mistakes are added to `problems`."""
    reader = _Reader(key, name, dict(fields), problems, len(problems))
    made = reader.parameter()
    if len(problems) > reader.before or made is None:
        return None
    size = made.size if method == "grid" else 1
    if size is None:
        reader.say("a grid needs values, whole numbers (int_uniform) or steps (q_uniform)")
    elif not 0 < size <= MOST_POINTS:
        reader.say(f"{size} values in a grid; it may have 1 to {MOST_POINTS}")
    return made if size is not None and 0 < size <= MOST_POINTS else None


@dataclass
class _Reader:
    """The fields of one parameter on their way to a `Parameter`."""

    key: str
    name: str
    fields: dict[str, Value]
    problems: list[Problem]
    before: int

    @property
    def where(self) -> str:
        return next(iter(self.fields.values())).where

    def say(self, message: str, *, field: str = "") -> None:
        where = self.fields[field].where if field in self.fields else self.where
        label = f"parameters.{self.name}{'.' if field else ''}{field}"
        self.problems.append(Problem(where, message, key=label))

    def parameter(self) -> Parameter | None:
        """Choose the distribution, as W&B does where it is left out, and read its numbers."""
        spread = {k: v for k, v in self.fields.items() if k.startswith("value.")}
        if spread:
            return self._choice([_nest({k[6:]: v.value for k, v in spread.items()})])
        kind = self._kind()
        if kind is None:
            return None
        if kind in CHOICES:
            return self._choices()
        return self._bell(kind) if kind in BELLS else self._range(kind)

    def _kind(self) -> str | None:
        given = self.fields.get("distribution")
        if given is not None:
            if given.value in DISTRIBUTIONS:
                return str(given.value)
            hint = hint_for(str(given.value), DISTRIBUTIONS)
            self.say(f"{given.value}: unknown; {hint}", field="distribution")
            return None
        if "value" in self.fields or "values" in self.fields:
            return "categorical"
        if "min" in self.fields and "max" in self.fields:
            ends = (self.fields["min"].value, self.fields["max"].value)
            return "int_uniform" if all(type(end) is int for end in ends) else "uniform"
        if "mu" in self.fields or "sigma" in self.fields:
            return "normal"
        self.say("expected value, values, or min and max")
        return None

    def _choices(self) -> Parameter | None:
        if "value" in self.fields:
            return self._choice([self.fields["value"].value])
        listed = self.fields.get("values")
        if listed is None or not isinstance(listed.value, list) or not listed.value:
            self.say("expected a list of values", field="values" if listed else "")
            return None
        chances = self.fields.get("probabilities")
        if chances is None:
            return self._choice(listed.value)
        numbers = chances.value
        good = isinstance(numbers, list) and len(numbers) == len(listed.value)
        good = good and all(_is_number(one) and one >= 0 for one in numbers)
        if not good or abs(sum(numbers) - 1) > 1e-6:
            self.say("expected a number for each value, summing to 1", field="probabilities")
            return None
        values, weights = tuple(listed.value), tuple(float(one) for one in numbers)
        return Parameter(
            self.key, self.name, self.where, "float", choices=values, weights=weights,
            high=1 - EDGE,
        )  # fmt: skip

    def _choice(self, values: Sequence[Any]) -> Parameter:
        once = {json.dumps(one): one for one in values}
        return Parameter(self.key, self.name, self.where, "choice", tuple(once.values()))

    def _range(self, kind: str) -> Parameter | None:
        low, high = self._number("min"), self._number("max")
        if low is None or high is None:
            return None
        if kind in ("log_uniform", "q_log_uniform", "inv_log_uniform"):  # W&B: they are exponents
            if max(abs(low), abs(high)) > LARGEST_EXPONENT:
                self.say(f"of {kind}, min and max are exponents; did you mean {kind}_values?")
                return None
            low, high = (-high, -low) if kind == "inv_log_uniform" else (low, high)
            low, high = math.exp(low), math.exp(high)
        if low >= high:
            self.say(f"min must be below max ({low:g}, {high:g})", field="min")
            return None
        logarithmic = "log" in kind
        if logarithmic and low <= 0:
            self.say("min must be above 0 (of log_uniform, min and max are exponents)", field="min")
            return None
        draw: Draw = "log" if logarithmic else "int" if kind == "int_uniform" else "float"
        if draw == "int" and not (low.is_integer() and high.is_integer()):
            self.say("int_uniform expects whole numbers", field="min")
            return None
        q = self._above_0("q") if kind.startswith("q_") else None
        return Parameter(self.key, self.name, self.where, draw, low=low, high=high, q=q)

    def _bell(self, kind: str) -> Parameter | None:
        mu, sigma = self._number("mu", default=0.0), self._above_0("sigma")
        if mu is None or sigma is None:
            return None
        if "log" in kind and abs(mu) + 5 * sigma > LARGEST_EXPONENT:
            self.say(f"of {kind}, mu and sigma are those of the logarithm; these are too large")
            return None
        return Parameter(
            self.key, self.name, self.where, "float", low=EDGE, high=1 - EDGE,
            q=self._above_0("q") if kind.startswith("q_") else None,
            bell=NormalDist(mu, sigma), exponential="log" in kind,
        )  # fmt: skip

    def _above_0(self, field: str) -> float | None:
        """A positive number, 1 where it is left out; None after a mistake."""
        number = self._number(field, default=1.0)
        if number is not None and number <= 0:
            self.say("expected number > 0", field=field)
            return None
        return number

    def _number(self, field: str, *, default: float | None = None) -> float | None:
        value = self.fields.get(field)
        if value is None:
            if default is None:
                self.say(f"{field} is required but not given")
            return default
        if not _is_number(value.value):
            self.say("expected number", field=field)
            return None
        return float(value.value)


def _is_number(value: Any) -> bool:
    """An ordinary number: neither true or false, nor infinite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
