"""Grids of settings: the lines that --grid expands to, and the method that each --set value applies to."""

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
"""Matches overrides of the sections that configure teachers."""


@dataclass(frozen=True)
class Variant:
    """One line of a comparison: a method and the settings in which it deviates from its recipe."""

    label: str
    """The method and its point of the grid, as tables show them."""
    method: str
    overrides: tuple[str, ...]
    """The point of the grid as key=value."""
    common: tuple[str, ...] = ()
    """The overrides that come from axes shared by all methods."""


def variants(axes: list[str], specs: dict[str, Spec], overrides: list[str] | None = None) -> list[Variant]:
    """Every method crossed with every point of its grid.

    `axes` are "key=v1,v2" for every method or "method.key=v1,v2" for one method; `specs` maps each method to its spec,
    in order. A key may be shortened to its last part if that is unambiguous in the spec of its method, or in the
    first method's spec for a shared axis. Raises UsageError for an unknown method, key or value, and for a key that
    has two axes, or both an axis and a value in `overrides` (--set).
    """
    common: list[tuple[str, list[str]]] = []
    owned: dict[str, list[tuple[str, list[str]]]] = {method: [] for method in specs}
    written: dict[str, dict[str, str]] = {method: {} for method in specs}
    for axis in axes:
        owner, rest = split_owner(axis, list(specs), "--grid")
        first = next(iter(specs.values()))
        key, values = parse_axis(rest, specs[owner] if owner else first)
        for method in [owner] if owner else specs:
            other = written[method].get(key)
            if other:
                raise UsageError(
                    f"--grid {other} and --grid {axis} are both axes of {key}: give all its values in one --grid"
                )
            written[method][key] = axis
        (owned[owner] if owner else common).append((key, values))
    for method in specs:
        _refuse_set_axes(written[method], overrides_of(method, list(specs), overrides or []))
    result = []
    for method in specs:
        # Shared axes come first, so that the first settings of every point are the common ones.
        options = [[(key, value) for value in values] for key, values in common + owned[method]]
        for point in product(*options):
            shown = ",".join(f"{_short_key(key)}={value}" for key, value in point)
            label = f"{method} {shown}" if shown else method
            settings = tuple(f"{key}={value}" for key, value in point)
            result.append(Variant(label, method, settings, settings[: len(common)]))
    return result


def _short_key(key: str) -> str:
    """A key without the name of a section that readers of a label can do without."""
    return key.removeprefix("params.").removeprefix("sampler.")


def _refuse_set_axes(axes: dict[str, str], overrides: list[str]) -> None:
    """Raise UsageError if --set gives a value to the key of an axis; `axes` maps keys to axes as written."""
    for text in overrides:
        for key in leaves(parse_override(text)):
            axis = axes.get(key)
            if axis:
                raise UsageError(f"--set {text} and --grid {axis} both set {key}: drop one of them")


def recipes(methods: list[str], tasks: list[str], backbone: str) -> dict[str, Spec]:
    """The methods' specs without the user's --set values, for looking up the keys of a grid.

    Those values are left out because they may be valid only with a kernel that the grid sets. A method that needs some
    of them is not asked whether it can run.
    """
    return {method: resolve(method, tasks, backbone=backbone, checked=False) for method in methods}


def split_owner(text: str, methods: list[str], option: str) -> tuple[str | None, str]:
    """Split "opd_ppo.params.clip=0.1" into ("opd_ppo", "params.clip=0.1"); (None, text) without a leading method.

    Raises UsageError if that method is not among `methods`.
    """
    owner, _, rest = text.partition(".")
    if owner not in registered("method"):
        return None, text
    if owner not in methods:
        raise UsageError(f"{option} {text!r}: method {owner!r} is not among {', '.join(methods)}")
    return owner, rest


def overrides_of(method: str, methods: list[str], overrides: list[str]) -> list[str]:
    """The --set values that apply to one method among several.

    "opd_ppo.params.clip=0.1" applies to opd_ppo only, and "teachers.ocr=train" to the methods that have teachers.
    Raises UsageError if a value names a method that is not among them, if the method's values contradict each other,
    or if a value has no effect because the method does not train.
    """
    taught = [name for name in methods if find("method", name).needs.teachers]
    owned = [(text, *split_owner(text, methods, "--set")) for text in overrides]
    # A key without a method may be meant for the others, so only values that name this method are refused.
    refuse_training(method, [rest for _, owner, rest in owned if owner == method])
    mine = []
    for text, owner, rest in owned:
        if owner:
            meant = [owner]
        elif taught and TEACHERS.match(rest):
            meant = taught
        else:
            meant = methods
        if method in meant:
            mine.append((f"--set {text}", rest))
    refuse_contradictions(mine)
    return [rest for _, rest in mine]


def parse_axis(text: str, spec: Spec) -> tuple[str, list[str]]:
    """Parse "eta=0,0.7" into ("sampler.eta", ["0", "0.7"]). Raises UsageError."""
    key, equals, values = text.partition("=")
    split = [value.strip() for value in _split_values(values) if value.strip()]
    if not equals or not split:
        raise UsageError(f"--grid takes key=value,value, got {text!r}")
    if len(set(split)) != len(split):
        raise UsageError(f"--grid {text!r} names a value twice")
    full = _grid_key(key, spec)
    if full.startswith("scorers."):
        raise UsageError(
            f"--grid {text}: scores of different scorers cannot be compared; run one comparison per scorer, each with "
            "its own --results folder"
        )
    for value in split:
        parse_override(f"{full}={value}", "--grid")
    return full, split


def _split_values(text: str) -> list[str]:
    """Split "[1,2],[3]" into ["[1,2]", "[3]"]: at the commas outside brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def _grid_key(key: str, spec: Spec) -> str:
    """The full key of an axis whose key may be shortened to its last part. Raises UsageError."""
    known = dotted_keys(spec.model_dump())
    # An empty section, such as params.weights or rewards, takes keys of its own, which are checked later.
    if key in known or any(key.startswith(f"{section}.") for section in known):
        return key
    matches = [k for k in known if k.rpartition(".")[2] == key]
    if not matches:
        short = (k.rpartition(".")[2] for k in known)
        raise unknown("grid key", key, {*short, *known})
    # `steps` means sampler.steps, not evaluation.steps: settings of the method and of training take precedence.
    preferred = [k for k in matches if k.startswith(("params.", "sampler."))] or matches
    if len(preferred) > 1:
        raise UsageError(f"--grid key {key!r} could mean {' or '.join(preferred)}; write it in full")
    return preferred[0]


def dotted_keys(section: dict, prefix: str = "") -> list[str]:
    """The dotted key of every leaf of nested settings, as --set spells it."""
    keys: list[str] = []
    for name, value in section.items():
        path = f"{prefix}{name}"
        nested = isinstance(value, dict) and value
        keys += dotted_keys(value, f"{path}.") if nested else [path]
    return keys


def method_names(names: list[str], tasks: list[str]) -> list[str]:
    """The methods that a user named; ["all"] means every registered method that can train these tasks together.

    Methods that also need settings, or tasks of a certain kind, are left out of "all".
    """
    if not names:
        raise UsageError("the list of methods is empty: name methods, or write 'all'")
    if names == ["all"]:
        single = len(tasks) == 1
        known = usable("method").items()
        return [name for name, method in known if method.in_all and (single or method.several_tasks)]
    return named("method", names)
