"""GenEval's prompt generator for any vocabulary.

An independent implementation of the procedure in github.com/djghosh13/geneval; with COCO's names and seed 43 it
generates the official 553 prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class Vocabulary:
    """Object names and colours. `uncoloured` is the name that never gets a colour."""

    names: tuple[str, ...]
    colours: tuple[str, ...]
    uncoloured: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Name in other data sets -> name here: suggested in error messages, never accepted."""


RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO name -> GenEval name of the three classes that differ."""
COCO = Vocabulary(
    names=(
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
        "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
        "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
        "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
        "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
        "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
    ),
    colours=("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
    uncoloured="person",
    aliases=RENAMED | {
        "sofa": "couch", "television": "tv", "tvmonitor": "tv", "motorbike": "motorcycle", "mobile phone": "cell phone",
        "fridge": "refrigerator", "plane": "airplane", "hairdryer": "hair drier", "doughnut": "donut",
        "aeroplane": "airplane",
    },
)  # fmt: skip


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def generate(vocabulary: Vocabulary, seed: int = 43, draws: int = 100) -> list[dict[str, Any]]:
    """Prompt records {tag, include, [exclude], prompt} in the official key order, with exact duplicates removed.

    The order of random draws is the official one; the 553 prompts depend on it.
    """
    names, colours = vocabulary.names, vocabulary.colours
    rng = np.random.default_rng(seed)
    count = len(names)
    # Classes with colours are drawn from the names after the uncoloured one, cyclically.
    skip = 0 if vocabulary.uncoloured is None else 1
    first = names.index(vocabulary.uncoloured) + 1 if skip else 0
    records: list[dict[str, Any]] = []

    def add(tag: str, include: list[dict], prompt: str, exclude: list[dict] | None = None) -> None:
        extra = {"exclude": exclude} if exclude else {}
        records.append({"tag": tag, "include": include, **extra, "prompt": prompt})

    for i in rng.choice(count, count, replace=False):
        add("single_object", [{"class": names[i], "count": 1}], f"a photo of {_a(names[i])}")
    for _ in range(draws):
        a, b = (names[i] for i in rng.choice(count, 2, replace=False))
        include = [{"class": a, "count": 1}, {"class": b, "count": 1}]
        add("two_object", include, f"a photo of {_a(a)} and {_a(b)}")
    for _ in range(draws):
        name, number = names[rng.choice(count)], int(rng.integers(2, 4, endpoint=True))
        include, exclude = [{"class": name, "count": number}], [{"class": name, "count": number + 1}]
        add("counting", include, f"a photo of {NUMBERS[number]} {_plural(name)}", exclude)
    for _ in range(draws):
        name = names[(rng.choice(count - skip) + first) % count]
        colour = colours[rng.choice(len(colours))]
        include = [{"class": name, "count": 1, "color": colour}]
        add("colors", include, f"a photo of {_a(colour)} {name}")
    for _ in range(draws):
        a, b = (names[i] for i in rng.choice(count, 2, replace=False))
        relation = RELATIONS[rng.choice(4)]
        # The target comes first: a position refers to an earlier clause by its index.
        include = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
        add("position", include, f"a photo of {_a(a)} {relation} {_a(b)}")
    for _ in range(draws):
        a, b = (names[i] for i in (rng.choice(count - skip, 2, replace=False) + first) % count)
        colour_a, colour_b = (colours[i] for i in rng.choice(len(colours), 2, replace=False))
        include = [{"class": a, "count": 1, "color": colour_a}, {"class": b, "count": 1, "color": colour_b}]
        add("color_attr", include, f"a photo of {_a(colour_a)} {a} and {_a(colour_b)} {b}")
    unique: list[dict[str, Any]] = []
    seen: set[str] = set()
    for record in records:
        key = repr(record)
        if key not in seen:
            seen.add(key)
            unique.append(record)
    return unique
