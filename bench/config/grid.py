"""Axes of settings: which specs a grid means, and for which method each --set value is."""

import re
from dataclasses import dataclass
from itertools import product

from bench.config.contradictions import leaves, refuse_contradictions
from bench.config.resolve import refuse_training, resolve
from bench.config.settings import parse_override
from bench.config.spec import Spec
from bench.errors import UsageError, unknown
from bench.registry import find, named, registered, usable

TEACHERS = re.compile(r"\s*(teachers|teacher_guidance)\s*[.=]")
"""Settings of teachers."""


@dataclass(frozen=True)
class Variant:
    """One line of a comparison: a method with its deviations from the recipe."""

    label: str
    method: str
    overrides: tuple[str, ...]
    common: tuple[str, ...] = ()
    """The part of the overrides that comes from axes all methods share."""


def variants(axes: list[str], specs: dict[str, Spec], overrides: list[str] | None = None) -> list[Variant]:
    """Every method crossed with every point of its grid. Raises UsageError for an unknown method, key or value, and
    where a key has two axes, or an axis and a value in `overrides` (--set).

    `axes` are "key=v1,v2" for every method or "method.key=v1,v2" for one; `specs` are the methods' own, in order. A
    key may be shortened to its last part where that is unambiguous: in the first method's spec, or in its owner's.
    """
    common: list[tuple[str, list[str]]] = []
    owned: dict[str, list[tuple[str, list[str]]]] = {method: [] for method in specs}
    written: dict[str, dict[str, str]] = {method: {} for method in specs}
    for axis in axes:
        owner, rest = split_owner(axis, list(specs), "--grid")
        key, values = parse_axis(rest, specs[owner] if owner else next(iter(specs.values())))
        for method in [owner] if owner else specs:
            if other := written[method].get(key):
                raise UsageError(f"--grid {other} and --grid {axis} are both axes of {key}: give its values in one")
            written[method][key] = axis
        (owned[owner] if owner else common).append((key, values))
    for method in specs:
        _refuse_set_axes(written[method], overrides_of(method, list(specs), overrides or []))
    result = []
    for method in specs:
        for point in product(*([(key, value) for value in values] for key, values in common + owned[method])):
            shown = ",".join(f"{key.removeprefix('params.').removeprefix('sampler.')}={v}" for key, v in point)
            label = f"{method} {shown}" if shown else method
            settings = tuple(f"{key}={value}" for key, value in point)
            result.append(Variant(label, method, settings, settings[: len(common)]))
    return result


def _refuse_set_axes(axes: dict[str, str], overrides: list[str]) -> None:
    """Raise UsageError if --set gives a value to the key of an axis; `axes` are key -> axis as it was written."""
    for text in overrides:
        for key in leaves(parse_override(text)):
            if axis := axes.get(key):
                raise UsageError(f"--set {text} and --grid {axis} are both for {key}: give it in one of them")


def recipes(methods: list[str], tasks: list[str], backbone: str) -> dict[str, Spec]:
    """Methods' specs for the keys of a grid, without what a user sets: that may fit no kernel but the grid's."""
    return {method: resolve(method, tasks, backbone=backbone) for method in methods}


def split_owner(text: str, methods: list[str], option: str) -> tuple[str | None, str]:
    """ "opd_ppo.params.clip=0.1" -> ("opd_ppo", "params.clip=0.1"); (None, text) where no method leads.

    Raises UsageError if the method it is meant for is not among `methods`.
    """
    owner, _, rest = text.partition(".")
    if owner not in registered("method"):
        return None, text
    if owner not in methods:
        raise UsageError(f"{option} {text!r}: method {owner!r} is not among {', '.join(methods)}")
    return owner, rest


def overrides_of(method: str, methods: list[str], overrides: list[str]) -> list[str]:
    """The `--set` values of one method among several: "opd_ppo.params.clip=0.1" is for opd_ppo alone, and
    "teachers.ocr=train" for the methods that have teachers.

    Raises UsageError if the method a value is meant for is not among them, if none of them has teachers, or if the
    method's values contradict one another, or do nothing because it does not train.
    """
    taught = [name for name in methods if find("method", name).needs.teachers]
    owned = [(text, *split_owner(text, methods, "--set")) for text in overrides]
    mine = []
    refuse_training(method, [rest for _, owner, rest in owned if owner == method])
    for text, owner, rest in owned:
        meant = [owner] if owner else taught if TEACHERS.match(rest) and taught else methods
        if method in meant:
            mine.append((f"--set {text}", rest))
    refuse_contradictions(mine)
    return [rest for _, rest in mine]


def parse_axis(text: str, spec: Spec) -> tuple[str, list[str]]:
    """ "eta=0,0.7" -> ("sampler.eta", ["0", "0.7"])."""
    key, equals, values = text.partition("=")
    split = [value.strip() for value in _split_values(values) if value.strip()]
    if not equals or not split:
        raise UsageError(f"--grid takes key=value,value, got {text!r}")
    if len(set(split)) != len(split):
        raise UsageError(f"--grid {text!r} names a value twice")
    full = _grid_key(key, spec)
    for value in split:
        parse_override(f"{full}={value}", "--grid")
    return full, split


def _split_values(text: str) -> list[str]:
    """ "[1,2],[3]" -> ["[1,2]", "[3]"]: split at commas that lie in no brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def _grid_key(key: str, spec: Spec) -> str:
    """The setting that a key of an axis, perhaps shortened to its last part, means. Raises UsageError."""
    known = dotted_keys(spec.model_dump())
    if key in known:
        return key
    matches = [k for k in known if k.rpartition(".")[2] == key]
    if not matches:
        raise unknown("grid key", key, {*(k.rpartition(".")[2] for k in known), *known})
    # Methods' own and sampling settings come before evaluation's.
    first = [k for k in matches if k.startswith(("params.", "sampler."))] or matches
    if len(first) > 1:
        raise UsageError(f"--grid key {key!r} could be {' or '.join(first)}; write it out")
    return first[0]


def dotted_keys(section: dict, prefix: str = "") -> list[str]:
    """Every leaf of nested settings, as --set spells it."""
    keys: list[str] = []
    for name, value in section.items():
        path = f"{prefix}{name}"
        keys += dotted_keys(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return keys


def method_names(names: list[str], tasks: list[str]) -> list[str]:
    """Methods a user named; ["all"] is every registered one that can train these tasks together."""
    if not names:
        raise UsageError("the method list is empty; name methods or 'all'")
    if names == ["all"]:
        return [name for name, method in usable("method").items() if method.several_tasks or len(tasks) == 1]
    return named("method", names)
