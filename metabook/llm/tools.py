"""Simulated tools for an agent: what they are called, what they take, what they do, and how people ask for them.

Every tool is a pure function of typed arguments that answers with a line of text; none reads or changes anything
outside of itself. A call that a model wrote, ``tip(amount=40, percent=15)``, is *data*: it is matched against one
grammar and each argument against the type of its parameter. Nothing of it is ever evaluated, imported, formatted or
looked up as an attribute.

The 40 tools, their descriptions and the ways of asking for them are made up for the book.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

__all__ = [
    "LONGEST",
    "SPLITS",
    "TOOLS",
    "Call",
    "Choice",
    "Clock",
    "Integer",
    "Kind",
    "Name",
    "Number",
    "Quoted",
    "Request",
    "Tool",
    "ToolError",
    "fill",
    "parse_call",
    "requests",
    "tools_in",
]

#: A call of more characters is not looked at.
LONGEST = 200
TEMPLATES = Path(__file__).with_name("tools.txt")
_HOLE = re.compile(r"\{(\w+)\}")
Value = int | float | str


class ToolError(ValueError):
    """A call that is not carried out; the message is one line that says why."""


# --- Types of arguments -------------------------------------------------------------------------------------------


class Kind(Protocol):
    """What an argument may be: how it is read strictly, found in a sentence, and drawn."""

    def parse(self, text: str) -> Value:
        """The value that a text is as a whole; ToolError if it is anything else."""
        ...

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where in a sentence something of this type stands, in order."""
        ...

    def draw(self, pick: Callable[[int], int]) -> str:
        """A text of this type; ``pick(n)`` gives a number below n."""
        ...


@dataclass(frozen=True)
class Integer:
    """A whole number between two bounds, in ASCII digits without a sign."""

    low: int
    high: int

    def parse(self, text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text) is None or not self.low <= int(text) <= self.high:
            raise ToolError(f"{_shown(text)} is no whole number from {self.low} to {self.high}")
        return int(text)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        return (span for span in _numbers(text) if _fits(self, text[slice(*span)]))

    def draw(self, pick: Callable[[int], int]) -> str:
        return str(self.low + pick(self.high - self.low + 1))


@dataclass(frozen=True)
class Number:
    """A number between two bounds, in digits with at most two after a point: no sign, exponent, ``nan`` or ``inf``."""

    low: int
    high: int

    def parse(self, text: str) -> float:
        found = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,2})?", text)
        if found is None or not self.low <= float(text) <= self.high:
            raise ToolError(f"{_shown(text)} is no number from {self.low} to {self.high}")
        return float(text)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        return (span for span in _numbers(text) if _fits(self, text[slice(*span)]))

    def draw(self, pick: Callable[[int], int]) -> str:
        whole = self.low + pick(self.high - self.low)
        return f"{whole}.5" if pick(4) == 0 else str(whole)


@dataclass(frozen=True)
class Choice:
    """One of a few lower-case words."""

    options: tuple[str, ...]

    def parse(self, text: str) -> str:
        if text not in self.options:
            raise ToolError(f"{_shown(text)} is none of {', '.join(self.options)}")
        return text

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        words = "|".join(re.escape(option) for option in sorted(self.options, key=len, reverse=True))
        return (found.span() for found in re.finditer(rf"\b(?:{words})\b", text))

    def draw(self, pick: Callable[[int], int]) -> str:
        return self.options[pick(len(self.options))]


@dataclass(frozen=True)
class Clock:
    """A time of day, ``7:05`` to ``23:59``; its value is minutes after midnight."""

    def parse(self, text: str) -> int:
        if re.fullmatch("([01]?[0-9]|2[0-3]):[0-5][0-9]", text) is None:
            raise ToolError(f"{_shown(text)} is no time of day such as 9:30")
        hours, _, minutes = text.partition(":")
        return 60 * int(hours) + int(minutes)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        return (found.span() for found in re.finditer(r"(?<![\w:])[0-9]{1,2}:[0-9]{2}(?!\w|:[0-9])", text))

    def draw(self, pick: Callable[[int], int]) -> str:
        return f"{7 + pick(14)}:{5 * pick(12):02d}"


@dataclass(frozen=True)
class Name:
    """A person's first name: one capital and some small ASCII letters."""

    def parse(self, text: str) -> str:
        if re.fullmatch("[A-Z][a-z]{1,19}", text) is None:
            raise ToolError(f"{_shown(text)} is no first name")
        return text

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        return (found.span() for found in re.finditer(r"\b[A-Z][a-z]{1,19}\b", text))

    def draw(self, pick: Callable[[int], int]) -> str:
        return _PEOPLE[pick(len(_PEOPLE))]


@dataclass(frozen=True)
class Quoted:
    """A few plain words between single quotes; its value is without them."""

    def parse(self, text: str) -> str:
        if re.fullmatch("'[A-Za-z0-9][A-Za-z0-9 ]{0,39}'", text) is None:
            raise ToolError(f"{_shown(text)} is no plain text in single quotes")
        return text[1:-1]

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        return (found.span() for found in re.finditer(r"(?<!\w)'[A-Za-z0-9][A-Za-z0-9 ]{0,39}'(?!\w)", text))

    def draw(self, pick: Callable[[int], int]) -> str:
        return f"'{_PHRASES[pick(len(_PHRASES))]}'"


_PEOPLE = ("Anna", "Marco", "Priya", "Yusuf", "Chloe", "Elena", "Tom", "Kenji", "Amara", "Lars")
_PHRASES = (
    "buy milk",
    "see you soon",
    "the train is late",
    "water the roses",
    "happy birthday",
    "call the dentist",
    "bring two chairs",
    "the keys are inside",
    "pay the rent",
    "lunch is ready",
)


def _shown(text: str) -> str:
    """A text on one line, at most 40 characters of it, with nothing that steers a terminal."""
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def _numbers(text: str) -> Iterator[tuple[int, int]]:
    return (found.span() for found in re.finditer(r"(?<![\w.:'])[0-9]+(?:\.[0-9]+)?(?![\w:']|\.[0-9])", text))


def _fits(kind: Kind, text: str) -> bool:
    try:
        kind.parse(text)
    except ToolError:
        return False
    return True


# --- Tools and calls ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """A tool: what it is called, what it says of itself, what it takes and what it does.

    Parameters
    ----------
    name : str
        Lower-case letters and underscores.
    domain : str
    description : str
        All that an agent knows of a tool that is new to it.
    parameters : mapping of str to Kind
        In the order in which the function takes them.
    function : callable
        Pure: the values of the arguments to a line of text.
    """

    name: str
    domain: str
    description: str
    parameters: Mapping[str, Kind]
    function: Callable[..., str]

    @property
    def label(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def text(self) -> str:
        """What an agent reads of it: name and description."""
        return f"{self.label}: {self.description}"

    @property
    def signature(self) -> str:
        """How it is called: ``tip(amount, percent)``."""
        return f"{self.name}({', '.join(self.parameters)})"

    def call(self, arguments: Mapping[str, str]) -> Call:
        """A call with arguments given as texts, each of which is parsed.

        Raises
        ------
        ToolError
            For a parameter that is missing or that there is not, or a text that is not of its type.
        """
        if unknown := [name for name in arguments if name not in self.parameters]:
            raise ToolError(f"{self.name} takes no {_shown(unknown[0])}: it is {self.signature}")
        if missing := [name for name in self.parameters if name not in arguments]:
            raise ToolError(f"{self.name} needs {missing[0]}: it is {self.signature}")
        return Call(self, tuple(kind.parse(arguments[name]) for name, kind in self.parameters.items()))


@dataclass(frozen=True)
class Call:
    """A tool and the values of its arguments, in its order."""

    tool: Tool
    values: tuple[Value, ...]

    def run(self) -> str:
        """What the tool answers."""
        return self.tool.function(*self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and (self.tool.name, self.values) == (other.tool.name, other.values)

    def __hash__(self) -> int:
        return hash((self.tool.name, self.values))

    def __str__(self) -> str:
        named = (f"{name}={_written(kind, v)}" for (name, kind), v in zip(self.tool.parameters.items(), self.values))
        return f"{self.tool.name}({', '.join(named)})"


def _written(kind: Kind, value: Value) -> str:
    if isinstance(kind, Clock):
        return _clock(int(value))
    if isinstance(kind, Quoted):
        return f"'{value}'"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_call(text: str, tools: Sequence[Tool]) -> Call:
    """Read ``name(parameter=value, parameter=value)`` strictly, as a call of one of some tools.

    The text is never evaluated. It must match as a whole; every parameter must be named once, and every value be of
    its parameter's type. Spaces around the whole and around a name or value do not matter.

    Parameters
    ----------
    text : str
        From a model or a person: anything at all.
    tools : sequence of Tool
        The ones that may be called.

    Returns
    -------
    Call

    Raises
    ------
    ToolError
        For anything else. The message holds no control characters of the text.

    Examples
    --------
    >>> print(parse_call("tip(amount=40, percent=15)", TOOLS).run())
    tip 6.00, together 46.00
    """
    if len(text) > LONGEST:
        raise ToolError(f"a call of {len(text)} characters is not read: at most {LONGEST}")
    found = re.fullmatch(r" *([a-z][a-z_]*)\(([\x20-\x27\x2a-\x7e]*)\) *", text)  # printable ASCII, no brackets inside
    if found is None:
        raise ToolError(f"{_shown(text)} is no call such as name(parameter=value)")
    tool = {tool.name: tool for tool in tools}.get(found[1])
    if tool is None:
        raise ToolError(f"there is no tool {_shown(found[1])} here")
    arguments: dict[str, str] = {}
    for part in found[2].split(",") if found[2].strip(" ") else ():
        name, equals, value = (piece.strip(" ") for piece in part.partition("="))
        if not equals:
            raise ToolError(f"{_shown(part)} does not say which parameter it is for")
        if name in arguments:
            raise ToolError(f"{_shown(name)} is given twice")
        arguments[name] = value
    return tool.call(arguments)


def fill(tool: Tool, text: str) -> Call:
    """A call of a tool with what stands in a sentence: for each parameter the first thing of its type that is left.

    Raises
    ------
    ToolError
        If there is nothing of a parameter's type, or what is there does not parse.
    """
    taken: list[tuple[int, int]] = []
    arguments: dict[str, str] = {}
    for name, kind in tool.parameters.items():
        free = (span for span in kind.find(text) if all(span[1] <= a or b <= span[0] for a, b in taken))
        span = next(free, None)
        if span is None:
            raise ToolError(f"{tool.name}: nothing in the request can be its {name}")
        taken.append(span)
        arguments[name] = text[slice(*span)]
    return tool.call(arguments)


# --- Requests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a person asks, and the call that does it.

    Parameters
    ----------
    text : str
    call : Call
    template : int
        Which of the tool's ways of asking it was made from.
    """

    text: str
    call: Call
    template: int


def requests(tools: Sequence[Tool], *, variants: int = 1, templates: int | None = None, seed: int = 0) -> list[Request]:
    """Requests for some tools, made from their templates; the same on every machine.

    Parameters
    ----------
    tools : sequence of Tool
    variants : int
        Requests of each template, with other arguments.
    templates : int, optional
        Take the first so many templates of each tool; all unless given.
    seed : int

    Returns
    -------
    list of Request
        Sorted by tool, then template.
    """
    found, asked = [], _asked()
    for tool in tools:
        for number, template in enumerate(asked[tool.name][:templates]):
            for variant in range(variants):
                drawn = _drawn(tool, f"{seed}/{tool.name}/{number}/{variant}")
                text = _HOLE.sub(lambda hole, drawn=drawn: drawn[hole[1]], template)  # type: ignore[misc]
                found.append(Request(text, tool.call(drawn), number))
    return found


def _drawn(tool: Tool, seed: str) -> dict[str, str]:
    """Texts for the arguments of a tool, all different: of two alike, no order would be wrong."""
    # Of Python's generator only random() is promised to stay the same from version to version.
    uniform = random.Random(seed).random
    while True:
        drawn = {name: kind.draw(lambda n: int(n * uniform())) for name, kind in tool.parameters.items()}
        if len(set(drawn.values())) == len(drawn):
            return drawn


@lru_cache(maxsize=1)
def _asked() -> dict[str, list[str]]:
    """The templates of each tool."""
    found: dict[str, list[str]] = {}
    for line in TEMPLATES.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            templates = found.setdefault(line[3:], [])
        elif line and not line.startswith("#"):
            templates.append(line)
    return found


# --- The set of tools ---------------------------------------------------------------------------------------------


def _clock(minutes: int) -> str:
    hours, rest = divmod(minutes % 1440, 60)
    return f"{hours}:{rest:02d}"


_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_day = Choice(_DAYS)
_RATES = {"euros": 1.0, "dollars": 1.25, "pounds": 0.8, "yen": 160.0, "francs": 0.95}  # made up
_room = Choice(("kitchen", "bedroom", "bathroom", "hallway", "office", "garage"))
_ZONES = {"london": 0, "cairo": 2, "delhi": 5, "tokyo": 9, "lima": -5, "denver": -7}  # whole hours, without summer time
_EGGS = {"soft": 5, "medium": 7, "hard": 10}
_EFFORT = {"walking": 4, "cycling": 7, "swimming": 8, "rowing": 9, "running": 11}  # kilocalories a minute
_SOWN = {"carrots": "april", "peas": "march", "lettuce": "may", "beans": "june", "spinach": "august"}
_percent = Integer(5, 60)


def _after(day: str, days: int) -> str:
    return _DAYS[(_DAYS.index(day) + days) % 7]


def _quotient(a: float, b: float, unit: str) -> str:
    return f"{a / b:.2f} {unit}" if b else "not defined: divided by zero"


TOOLS: tuple[Tool, ...] = (
    # train: money
    Tool(
        "tip",
        "money",
        "Gratuity for a service, as a share of the bill, and the sum with it.",
        {"amount": Number(10, 200), "percent": _percent},
        lambda a, p: f"tip {a * p / 100:.2f}, together {a * (1 + p / 100):.2f}",
    ),
    Tool(
        "split_bill",
        "money",
        "Divides a sum evenly among several people.",
        {"amount": Number(20, 400), "people": Integer(2, 12)},
        lambda a, n: f"{_quotient(a, n, 'each')}",
    ),
    Tool(
        "convert_currency",
        "money",
        "Exchanges a sum from one currency into another at a fixed rate.",
        {"amount": Number(5, 900), "source": Choice(tuple(_RATES)), "target": Choice(tuple(_RATES))},
        lambda a, s, t: f"{a / _RATES[s] * _RATES[t]:.2f} {t}",
    ),
    Tool(
        "compound_interest",
        "money",
        "Future value of savings with yearly interest.",
        {"amount": Integer(100, 9000), "percent": Integer(1, 9), "years": Integer(10, 40)},
        lambda a, p, y: f"{a * (1 + p / 100) ** y:.2f}",
    ),
    # train: calendar
    Tool(
        "add_minutes",
        "calendar",
        "The time of day some minutes after a given time.",
        {"time": Clock(), "minutes": Integer(5, 180)},
        lambda t, m: _clock(t + m),
    ),
    Tool(
        "time_between",
        "calendar",
        "How many minutes lie between two times of day.",
        {"start": Clock(), "end": Clock()},
        lambda s, e: f"{(e - s) % 1440} minutes",
    ),
    Tool(
        "day_after",
        "calendar",
        "The day of the week some days after a given day.",
        {"day": _day, "days": Integer(2, 60)},
        lambda d, n: _after(d, n),
    ),
    Tool(
        "countdown",
        "calendar",
        "Turns a number of days into weeks and days that are left.",
        {"days": Integer(8, 300)},
        lambda n: f"{n // 7} weeks and {n % 7} days",
    ),
    # train: words
    Tool(
        "count_letters",
        "words",
        "Number of letters in a text.",
        {"text": Quoted()},
        lambda s: f"{sum(c.isalpha() for c in s)} letters",
    ),
    Tool("reverse_text", "words", "Writes a text backwards.", {"text": Quoted()}, lambda s: s[::-1]),
    Tool("upper_text", "words", "Puts a text into capital letters.", {"text": Quoted()}, lambda s: s.upper()),
    Tool(
        "initials",
        "words",
        "The first letter of each word of a text.",
        {"text": Quoted()},
        lambda s: "".join(word[0] for word in s.split()).upper(),
    ),
    # train: kitchen
    Tool(
        "oven_temperature",
        "kitchen",
        "Converts an oven temperature from Celsius to Fahrenheit.",
        {"degrees": Integer(120, 250)},
        lambda c: f"{c * 9 / 5 + 32:.0f} F",
    ),
    Tool(
        "boil_egg",
        "kitchen",
        "How long an egg cooks for a given firmness.",
        {"firmness": Choice(tuple(_EGGS))},
        lambda f: f"{_EGGS[f]} minutes",
    ),
    Tool(
        "scale_recipe",
        "kitchen",
        "Adjusts an amount in a recipe to another number of servings.",
        {"grams": Integer(50, 900), "servings": Integer(2, 4), "wanted": Integer(5, 12)},
        lambda g, s, w: f"{g * w / s:.0f} g",
    ),
    Tool(
        "cups_to_millilitres",
        "kitchen",
        "Converts cups of liquid into millilitres.",
        {"cups": Number(1, 12)},
        lambda c: f"{240 * c:.0f} ml",
    ),
    # train: home
    Tool(
        "set_light",
        "home",
        "Dims or brightens the lamps of a room to a level in per cent.",
        {"room": _room, "percent": Integer(0, 100)},
        lambda r, p: f"{r} light at {p} %",
    ),
    Tool(
        "set_heating",
        "home",
        "Sets the temperature that a room is to have.",
        {"room": _room, "degrees": Integer(14, 26)},
        lambda r, d: f"{r} at {d} degrees",
    ),
    Tool(
        "start_timer",
        "home",
        "Rings in a room after some minutes.",
        {"minutes": Integer(1, 90), "room": _room},
        lambda m, r: f"rings in the {r} in {m} minutes",
    ),
    Tool(
        "vacuum_room",
        "home",
        "Sends the cleaning robot to a room at a time of day.",
        {"room": _room, "time": Clock()},
        lambda r, t: f"robot cleans the {r} at {_clock(t)}",
    ),
    # validation: body
    Tool(
        "body_mass_index",
        "body",
        "Body mass index from weight and height.",
        {"kilograms": Integer(45, 120), "centimetres": Integer(150, 200)},
        lambda w, h: _quotient(10_000 * w, h * h, "kg per square metre"),
    ),
    Tool(
        "training_pulse",
        "body",
        "Heart rate to train at for a given age.",
        {"age": Integer(16, 80)},
        lambda a: f"{0.7 * (220 - a):.0f} beats a minute",
    ),
    Tool(
        "calories_burned",
        "body",
        "Energy used by an activity of some minutes.",
        {"activity": Choice(tuple(_EFFORT)), "minutes": Integer(10, 180)},
        lambda a, m: f"{_EFFORT[a] * m} kcal",
    ),
    Tool(
        "water_intake",
        "body",
        "How much a person should drink a day, by weight.",
        {"kilograms": Integer(40, 120)},
        lambda w: f"{0.035 * w:.1f} litres",
    ),
    # validation: garden
    Tool(
        "plants_in_row",
        "garden",
        "How many plants fit into a row at a given distance.",
        {"metres": Integer(2, 30), "centimetres": Integer(35, 90)},
        lambda m, c: f"{100 * m // c + 1} plants",
    ),
    Tool(
        "sowing_month",
        "garden",
        "The month in which a vegetable is sown.",
        {"vegetable": Choice(tuple(_SOWN))},
        lambda v: _SOWN[v],
    ),
    Tool(
        "soil_needed",
        "garden",
        "Volume of earth that fills a raised bed.",
        {"length": Integer(60, 200), "width": Integer(40, 120), "depth": Integer(10, 35)},
        lambda a, b, c: f"{a * b * c / 1000:.0f} litres",
    ),
    Tool(
        "watering_time",
        "garden",
        "When to water next, some hours after the last time.",
        {"time": Clock(), "hours": Integer(4, 20)},
        lambda t, h: _clock(t + 60 * h),
    ),
    # test: travel
    Tool(
        "drive_time",
        "travel",
        "How long a journey by car takes at an average speed.",
        {"kilometres": Integer(130, 900), "speed": Integer(50, 125)},
        lambda d, s: _quotient(d, s, "hours"),
    ),
    Tool(
        "fuel_cost",
        "travel",
        "Price of the petrol for a journey by car.",
        {"kilometres": Integer(130, 900), "litres": Integer(4, 12)},
        lambda d, c: f"{1.8 * d * c / 100:.2f} at 1.80 a litre",
    ),
    Tool(
        "local_time",
        "travel",
        "What time it is in another city when it is a given time in Greenwich.",
        {"time": Clock(), "city": Choice(tuple(_ZONES))},
        lambda t, c: f"{_clock(t + 60 * _ZONES[c])} in {c}",
    ),
    Tool(
        "luggage_fee",
        "travel",
        "What an airline charges for a bag above the free weight.",
        {"kilograms": Integer(20, 40), "free": Integer(8, 19)},
        lambda w, f: f"{12 * max(0, w - f)}.00 for {max(0, w - f)} kg too much",
    ),
    # test: shop
    Tool(
        "sale_price",
        "shop",
        "Price of an article after a reduction in per cent.",
        {"price": Number(61, 300), "percent": _percent},
        lambda a, p: f"{a * (1 - p / 100):.2f}",
    ),
    Tool(
        "unit_price",
        "shop",
        "Price for each hundred grams, to compare packets.",
        {"price": Number(1, 19), "grams": Integer(100, 900)},
        lambda a, g: _quotient(100 * a, g, "for 100 g"),
    ),
    Tool(
        "return_deadline",
        "shop",
        "The last day of the week on which a purchase can be given back.",
        {"day": _day, "days": Integer(7, 60)},
        lambda d, n: f"until {_after(d, n)}",
    ),
    Tool(
        "order_total",
        "shop",
        "What several pieces of one article cost together with shipping.",
        {"price": Number(20, 90), "pieces": Integer(2, 19)},
        lambda a, n: f"{a * n + 4.9:.2f} with shipping",
    ),
    # test: office
    Tool(
        "reserve_room",
        "office",
        "Books a meeting room for some people at a time of day.",
        {"people": Integer(2, 30), "time": Clock()},
        lambda n, t: f"room for {n} at {_clock(t)}",
    ),
    Tool(
        "send_message",
        "office",
        "Sends a short text to a person.",
        {"person": Name(), "text": Quoted()},
        lambda p, s: f"to {p}: {s}",
    ),
    Tool(
        "set_reminder",
        "office",
        "Reminds of something at a time of day.",
        {"text": Quoted(), "time": Clock()},
        lambda s, t: f"{_clock(t)} {s}",
    ),
    Tool(
        "reading_time",
        "office",
        "How long it takes to read a document of some pages.",
        {"pages": Integer(3, 400)},
        lambda n: f"{2 * n} minutes",
    ),
)
#: No domain is in two of the splits.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("money", "calendar", "words", "kitchen", "home"),
    "validation": ("body", "garden"),
    "test": ("travel", "shop", "office"),
}


def tools_in(split: str) -> list[Tool]:
    """The tools of a split: ``"train"``, ``"validation"`` or ``"test"``.

    Raises
    ------
    ValueError
        For another one.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    return [tool for tool in TOOLS if tool.domain in SPLITS[split]]
