"""Captions of the micro world and scenes that match them: the data on which the base is pretrained.

The six kinds of caption about objects are GenEval's tags, in GenEval's wording. `sign` is for rendering text, and
`illustration` provides the free-form prompts of the preference task.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from bench.backbones.micro.glyphs import ALPHABET
from bench.backbones.micro.world import CANVAS, CELL, COLOURS, GROUNDS, SHAPES, Scene, Thing, place, taken_cells

# Fraction of each kind's captions that state one fact wrongly. They keep the base imperfect, so that it can improve.
MISTAKES = {
    "single_object": 0.1,
    "colors": 0.1,
    "two_object": 0.1,
    "counting": 0.2,
    "position": 0.2,
    "color_attr": 0.2,
    "sign": 0.18,
    "illustration": 0.18,
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
COUNTS = (2, 3, 4)
COUNT_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}
SIGN_LENGTHS = (3, 4)
SPECK_PROBABILITY = 0.5
ILLUSTRATION_SIZES = (1, 2, 3)


@dataclass(frozen=True)
class Brief:
    """The facts that a caption states: shapes in order with their colours, a relation, or the text of a sign."""

    kind: str
    shapes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    """A colour for each shape; "" leaves it free."""
    relation: str = ""
    """Where the second shape is, relative to the first."""
    sign: str = ""


def with_article(noun: str) -> str:
    """A noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of a shape's name."""
    return noun + ("es" if noun.endswith("s") else "s")


def caption(brief: Brief) -> str:
    """The caption of a brief, in GenEval's wording for GenEval's kinds."""
    if brief.kind == "sign":
        return f'a sign that says "{brief.sign}"'
    if brief.kind == "counting":
        return f"a photo of {COUNT_WORDS[len(brief.shapes)]} {plural(brief.shapes[0])}"
    objects = zip(brief.colours, brief.shapes, strict=True)
    nouns = [with_article(f"{colour} {shape}".strip()) for colour, shape in objects]
    if brief.kind == "position":
        # The second shape stands in `relation` to the first; GenEval names it first.
        return f"a photo of {nouns[1]} {brief.relation} {nouns[0]}"
    opening = "an illustration of" if brief.kind == "illustration" else "a photo of"
    return f"{opening} {' and '.join(nouns)}"


def vocabulary(shapes: tuple[str, ...] = SHAPES) -> list[str]:
    """Every word and character token that captions of a world with these shapes can contain, in a fixed order."""
    words = ["a", "an", "and", "photo", "illustration", "of", "sign", "that", "says", "left", "right", "above", "below"]
    words += [*COUNT_WORDS.values(), *shapes, *(plural(s) for s in shapes), *COLOURS, '"']
    return words + [f'"{char}' for char in ALPHABET]


def draw_brief(rng: np.random.Generator, kind: str, shapes: tuple[str, ...] = SHAPES) -> Brief:
    """A random brief of the given kind about some of these shapes."""
    if kind == "sign":
        length = int(rng.choice(SIGN_LENGTHS))
        return Brief(kind, sign="".join(rng.choice(list(ALPHABET), length)))
    if kind == "counting":
        count = int(rng.choice(COUNTS))
        shape = str(rng.choice(shapes))
        return Brief(kind, (shape,) * count, ("",) * count)
    if kind == "illustration":
        size = int(rng.choice(ILLUSTRATION_SIZES))
        return Brief(kind, _pick(rng, shapes, size), _pick(rng, COLOURS, size))
    size = 1 if kind in ("single_object", "colors") else 2
    chosen = tuple(str(s) for s in rng.choice(shapes, size, replace=False))
    colours = ("",) * size
    if kind in ("colors", "color_attr"):
        colours = tuple(str(c) for c in rng.choice(list(COLOURS), size, replace=False))
    relation = str(rng.choice(RELATIONS)) if kind == "position" else ""
    return Brief(kind, chosen, colours, relation)


def draw_scene(brief: Brief, rng: np.random.Generator, distant: float = 0.0) -> Scene:
    """A random scene that matches a brief; a view of objects is distant with probability `distant`."""
    ground = str(rng.choice(list(GROUNDS)))
    colours = [c or str(rng.choice(list(COLOURS))) for c in brief.colours]
    corners = place(len(brief.shapes), rng) if brief.shapes else []
    if brief.relation:
        while not stands(corners[1], corners[0], brief.relation):
            corners = place(2, rng)
    objects = zip(brief.shapes, colours, corners, strict=True)
    things = tuple(Thing(shape, colour, *corner) for shape, colour, corner in objects)
    # The number and order of random draws must not change: pretrained weights depend on the corpus.
    is_distant = bool(things) and rng.random() < distant
    scene = Scene(ground, things, brief.sign, distant=is_distant)
    if rng.random() >= SPECK_PROBABILITY:
        return scene
    cells = [(i, j) for i in range(CANVAS // CELL) for j in range(CANVAS // CELL)]
    free = sorted(set(cells) - taken_cells(scene))
    count = min(len(free), int(rng.integers(1, 4)))
    if not count:
        return replace(scene, specks=())
    chosen = rng.choice(len(free), count, replace=False)
    return replace(scene, specks=tuple(free[i] for i in chosen))


def stands(a: tuple[int, int], b: tuple[int, int], relation: str) -> bool:
    """Whether block corner `a` is in `relation` to `b`, and in no other relation by GenEval's rule."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    offsets = {
        "left of": (-dx, dy),
        "right of": (dx, dy),
        "above": (-dy, dx),
        "below": (dy, dx),
    }
    along, across = offsets[relation]
    return along > abs(across)


def garble(brief: Brief, rng: np.random.Generator, shapes: tuple[str, ...] = SHAPES) -> Brief:
    """The brief with one fact wrong, as in web captions: the opposite side, a count off by one, colours swapped."""

    def other(options: Iterable[str], not_this: str) -> str:
        return str(rng.choice([option for option in options if option != not_this]))

    if brief.kind == "sign":
        at = int(rng.integers(len(brief.sign)))
        wrong = other(ALPHABET, brief.sign[at])
        return replace(brief, sign=brief.sign[:at] + wrong + brief.sign[at + 1 :])
    if brief.kind == "counting":
        near = [n for n in COUNTS if abs(n - len(brief.shapes)) == 1]
        count = int(rng.choice(near))
        return replace(brief, shapes=brief.shapes[:1] * count, colours=("",) * count)
    if brief.kind == "position":
        return replace(brief, relation=OPPOSITE[brief.relation])
    if brief.kind == "color_attr":
        return replace(brief, colours=brief.colours[::-1])
    at = int(rng.integers(len(brief.shapes)))
    field = "colours" if brief.colours[at] and rng.random() < 0.5 else "shapes"
    values = list(getattr(brief, field))
    values[at] = other(COLOURS if field == "colours" else shapes, values[at])
    changed = tuple(values)
    return replace(brief, colours=changed) if field == "colours" else replace(brief, shapes=changed)


def _pick(rng: np.random.Generator, options: Iterable[str], size: int) -> tuple[str, ...]:
    return tuple(str(o) for o in rng.choice(list(options), size))
