"""Intents: short messages to an assistant, labelled with what the person wants.

- :func:`intents`, generated from templates of our own: nothing to download.
- :func:`clinc150`: S. Larson et al., An evaluation dataset for intent classification and out-of-scope prediction,
  EMNLP 2019, https://aclanthology.org/D19-1131 (CC BY 3.0).
- :func:`banking77`: I. Casanueva et al., Efficient intent detection with dual sentence encoders, NLP4ConvAI 2020,
  https://aclanthology.org/2020.nlp4convai-1.5 (CC BY 4.0).

The five class splits of the last two are those of T. Dopierre, C. Gravier, W. Logerais, ProtAugment, ACL 2021,
https://aclanthology.org/2021.acl-long.191, which the few-shot literature uses.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from metabook.data import store
from metabook.data.store import DataError
from metabook.data.texts import TextData, csv_rows, read_text_file

__all__ = ["SPLITS", "banking77", "clinc150", "fetch", "fetch_banking77", "fetch_clinc150", "intents"]

SPLITS = ("train", "validation", "test")
TEMPLATES = Path(__file__).with_name("intents.txt")
HASHES = Path(__file__).with_name("intents.sha256")
#: Repository, commit and folder that the files of each of our folders come from.
ORIGINS = {
    "clinc150": ("clinc/oos-eval", "828f8093932c8fe6ca7936c3d2e52903b1c523de", "data"),
    "banking77": ("PolyAI-LDN/task-specific-datasets", "57ec275d8078af65b7731c2a98be812d844a6d6b", "banking_data"),
    "fewshot_splits": ("tdopierre/ProtAugment", "4233bbae0d7544e632692c4d2c185b2ed2a19eef", "data"),
}
HOSTS = ("https://github.com/{repository}/raw/{path}", "https://raw.githubusercontent.com/{repository}/{path}")
OTHERWISE = "or use the generated intents, which need no download: load('intents')"

# --- Generated -----------------------------------------------------------------------------------------------------

OPENINGS = ("hi, ", "hey, ", "hello, ", "hi there, ", "good morning, ", "ok, ", "sorry, ", "so, ", "one thing, ")
CLOSINGS = (" please", " thanks", " thank you", ", please", ", cheers", ", thanks a lot")
OPEN, CLOSE, TIDY, UNMARKED = 0.15, 0.15, 0.5, 0.5  # shares of the messages
MISSES = 500  # repetitions in a row after which the templates are taken to be used up
_HOLE = re.compile(r"\{(\w+)\}|\(([^()]*)\)")


@dataclass
class Grammar:
    """What ``intents.txt`` says: slots, the templates of each intent, its domain, and the domains of each split."""

    slots: dict[str, list[str]] = field(default_factory=dict)
    templates: dict[str, list[str]] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS})


def intents(split: str = "train", *, messages: int = 60, seed: int = 0) -> TextData:
    """Messages of 72 intents in 9 domains, made from templates: nothing to download.

    Each message is a template with its slots filled, in one of several manners (with or without a greeting, thanks,
    capitals, punctuation). The intents of a domain share slots and words, so that single words do not tell
    them apart. A made-up set: good for trying methods out, no measure of how they do on what people write.

    Parameters
    ----------
    split : str
        ``"train"`` (5 domains), ``"validation"`` (2) or ``"test"`` (2), or several joined by plus signs. No domain
        is in two of them.
    messages : int
        Different messages of each intent, at least 1. (Greetings, thanks and punctuation make no difference.)
    seed : int
        The same messages for the same seed and number, on every machine.

    Returns
    -------
    TextData
        Names such as ``"book_flight"``; groups are domains.

    Raises
    ------
    ValueError
        If there is no such split, or the templates of an intent do not make so many messages.
    """
    parts = _parts("intents", split, SPLITS)
    pool = _generated(messages, seed)
    return _sum([pool.in_groups(_grammar().splits[part]) for part in parts])


@lru_cache(maxsize=4)
def _generated(messages: int, seed: int) -> TextData:
    if messages < 1:
        raise ValueError(f"messages must be at least 1, not {messages}")
    grammar, taken = _grammar(), set[str]()
    pairs = [
        (message, intent)
        for intent, templates in grammar.templates.items()
        for message in _messages(intent, templates, grammar.slots, messages, seed, taken)
    ]
    return TextData.of(pairs, grammar.domains)


@lru_cache(maxsize=1)
def _grammar() -> Grammar:
    grammar, domain, intent = Grammar(), "", ""
    for line in TEMPLATES.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line:
            continue
        if match := re.fullmatch(r"== (\w+) \((\w+)\)", line):
            domain = match[1]
            grammar.splits[match[2]].append(domain)
        elif match := re.fullmatch(r"-- (\w+)", line):
            intent = match[1]
            grammar.templates[intent], grammar.domains[intent] = [], domain
        elif match := re.fullmatch(r"(\w+) = (.+)", line):
            grammar.slots[match[1]] = match[2].split(" | ")
        else:
            grammar.templates[intent].append(line)
    return grammar


def _messages(
    intent: str, templates: Sequence[str], slots: dict[str, list[str]], count: int, seed: int, taken: set[str]
) -> list[str]:
    """Different messages of one intent; their plain forms are added to ``taken``."""
    # Of Python's generator only random() is promised to stay the same from version to version.
    uniform = random.Random(f"{seed}/{intent}").random

    def pick(options: Sequence[str]) -> str:
        return options[int(uniform() * len(options))]

    found: list[str] = []
    misses = 0
    while misses < MISSES:
        # Most people word a request in the same few ways: the first templates are taken more often.
        plain = _fill(templates[int(len(templates) * uniform() ** 2)], slots, pick)
        misses += 1
        if plain.lower() not in taken:
            misses = 0
            taken.add(plain.lower())
            found.append(_dress(plain, uniform, pick))
            if len(found) == count:
                return found
    raise ValueError(f"the templates of {intent} do not make {count} different messages: take fewer")


def _fill(template: str, slots: dict[str, list[str]], pick: Callable[[Sequence[str]], str]) -> str:
    """The template with a choice for each slot and alternative; a slot's second value is another than its first."""
    while hole := _HOLE.search(template):
        options = slots[hole[1]] if hole[1] else hole[2].split("|")
        if hole[1]:
            options = [value for value in options if value not in template] or options
        template = template[: hole.start()] + pick(options) + template[hole.end() :]
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(template.split()), flags=re.IGNORECASE)


def _dress(text: str, uniform: Callable[[], float], pick: Callable[[Sequence[str]], str]) -> str:
    """A manner of writing: with a greeting or thanks, in tidy or casual spelling."""
    question = text.endswith("?") or text.startswith(("can ", "could ", "would ", "will ", "how "))
    text = text.rstrip("?")
    if uniform() < OPEN:
        text = pick(OPENINGS) + text
    if uniform() < CLOSE and not re.search(r"\b(please|pls)\b", text):
        text += pick(CLOSINGS)
    if uniform() < TIDY:
        text = re.sub(r"\bi\b", "I", text)
        return text[0].upper() + text[1:] + ("?" if question else ".")
    return text.lower() + ("?" if question and uniform() >= UNMARKED else "")


def fetch() -> list[Path]:
    """Nothing needs to be fetched: the file of the templates."""
    return [TEMPLATES]


# --- Published -----------------------------------------------------------------------------------------------------


def clinc150(split: str = "train", *, split_number: int = 1) -> TextData:
    """CLINC150: 150 intents in 10 domains, 150 messages each, and 1,200 messages of no intent.

    All messages of a class are taken, whichever part of the full-data task (training, validation, test) they belong
    to: here the *classes* are split, 50 to each side. Five messages stand under two intents, or twice under one.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"``, ``"test"``, or several joined by plus signs. ``"out_of_scope"`` is the one
        class of the messages that belong to none.
    split_number : int
        Which of the five published class splits, 1 to 5.

    Returns
    -------
    TextData
        Names such as ``"book_flight"``; groups are the domains.

    Raises
    ------
    ValueError
        If there is no such split or number.
    DataError
        If the files cannot be had or are damaged.
    """
    parts = _parts("clinc150", split, (*SPLITS, "out_of_scope"))
    labels = _labels("OOS", [part for part in parts if part in SPLITS], split_number)
    path, domains_path = (_file(f"clinc150/{name}") for name in ("data_full.json", "domains.json"))
    content, domains = _json(path), _json(domains_path)
    try:
        messages = [(text, name) for part in ("train", "val", "test") for text, name in content[part]]
        outside = [(text, "out_of_scope") for part in ("train", "val", "test") for text, _ in content[f"oos_{part}"]]
        groups = {name: domain for domain, names in domains.items() for name in names}
        pool, out_of_scope = TextData.of(messages, groups), TextData.of(outside)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}, {domains_path.name}: not laid out as CLINC150: fetch or copy them again") from None
    return _sum([out_of_scope if part == "out_of_scope" else _classes(pool, *labels[part]) for part in parts])


def banking77(split: str = "train", *, split_number: int = 1) -> TextData:
    """BANKING77: 13,071 messages of a bank's customers in 77 closely related intents (75 to 227 each).

    All messages of a class are taken, as in :func:`clinc150`; twelve repeated ones are kept once. The classes are
    split into 25, 25 and 27.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"``, ``"test"``, or several joined by plus signs.
    split_number : int
        Which of the five published class splits, 1 to 5.

    Returns
    -------
    TextData
        Names such as ``"card_arrival"``; one group, ``"banking"``.

    Raises
    ------
    ValueError
        If there is no such split or number.
    DataError
        If the files cannot be had or are damaged.
    """
    parts = _parts("banking77", split, SPLITS)
    labels = _labels("BANKING77", parts, split_number)
    messages = []
    for name in ("train.csv", "test.csv"):
        path = _file(f"banking77/{name}")
        rows = [(row["text"], row["category"]) for _, row in csv_rows(path, ("text", "category"))]
        if not rows or None in {value for pair in rows for value in pair}:
            raise DataError(f"{path}: cut off or empty: fetch or copy it again")
        messages += rows
    pool = TextData.of(messages, {name: "banking" for _, name in messages})
    return _sum([_classes(pool, *labels[part]) for part in parts])


def fetch_clinc150() -> list[Path]:
    """Find or download the messages, the domains and the five class splits; their paths."""
    return [_file(name) for name in _hashes() if name.startswith(("clinc150/", "fewshot_splits/OOS/"))]


def fetch_banking77() -> list[Path]:
    """Find or download the messages and the five class splits; their paths."""
    return [_file(name) for name in _hashes() if name.startswith(("banking77/", "fewshot_splits/BANKING77/"))]


def _parts(name: str, split: str, known: Sequence[str]) -> list[str]:
    parts = list(dict.fromkeys(split.split("+")))
    if unknown := [part for part in parts if part not in known]:
        raise ValueError(f"{name} has no split {unknown[0]!r}: take {', '.join(known)}, or several joined by +")
    return parts


@lru_cache(maxsize=1)
def _hashes() -> dict[str, str]:
    """The SHA-256 of each file that can be fetched, by our name for it."""
    lines = HASHES.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def _file(name: str) -> Path:
    folder, *parents, file = name.split("/")
    repository, commit, inside = ORIGINS[folder]
    if folder == "fewshot_splits":
        parents.insert(1, "few_shot")
    path = "/".join([commit, inside, *parents, file])
    urls = [host.format(repository=repository, path=path) for host in HOSTS]
    return store.find_or_fetch(name, urls, f"sha256:{_hashes()[name]}", otherwise=OTHERWISE)


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text_file(path))
    except (ValueError, RecursionError):
        raise DataError(f"{path}: damaged or cut off (not JSON): fetch or copy it again") from None


def _labels(name: str, parts: Sequence[str], split_number: int) -> dict[str, tuple[Path, list[str]]]:
    """The file of each part's class names, and the names."""
    if split_number not in range(1, 6):
        raise ValueError(f"split_number must be between 1 and 5, not {split_number}")
    files = {"train": "labels.train.txt", "validation": "labels.valid.txt", "test": "labels.test.txt"}
    paths = {part: _file(f"fewshot_splits/{name}/{split_number:02}/{files[part]}") for part in parts}
    return {part: (path, read_text_file(path).split()) for part, path in paths.items()}


def _classes(pool: TextData, path: Path, names: Sequence[str]) -> TextData:
    numbers = {name: number for number, name in enumerate(pool.names)}
    if unknown := [name for name in names if name not in numbers]:
        raise DataError(f"{path}: no messages of the class {unknown[0]!r}: fetch or copy the files of the set again")
    return pool.select([numbers[name] for name in names])


def _sum(pools: Sequence[TextData]) -> TextData:
    total = pools[0]
    for pool in pools[1:]:
        total = total + pool
    return total
