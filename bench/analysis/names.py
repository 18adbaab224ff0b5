"""Readable names of lines: "Joint RL (DiffusionNFT)" for a line `multi_reward engine=nft` of a comparison."""

import re
from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError
from bench.registry import find


def readable(label: str, params: Mapping[str, Any], method: str | None = None) -> str:
    """The method's title, the variants that it is named by, and the settings of the label that no variant names.

    `label` is a method's name and, after a space, its settings as key=value with commas; `params` are the settings of
    the method in a spec. The label itself for a method that is not installed here, and where it does not begin with
    `method`: a comparison's record may have any text.
    """
    name, _, said = label.partition(" ")
    if method not in (None, name):
        return label
    try:
        found = find("method", name)
    except BenchError:
        return label
    variants = found.all_variants()
    given = {key: f"{key}={params.get(key.removeprefix('params.'))}" for key in found.named_by}
    parts = [_short(variants[setting]) for setting in given.values() if setting in variants]
    for setting in settings(said):
        key = f"params.{setting.partition('=')[0]}"
        variant = variants.get(f"params.{setting}")
        # What the method is named by was said above, unless its value has no name.
        if not (key in given and given[key] in variants):
            parts.append(_short(variant) if variant else setting)
    title = found.title or name
    return f"{title} ({', '.join(parts)})" if parts else title


def settings(text: str) -> list[str]:
    """The parts of "key=value,key=value"; a value may have commas."""
    return re.split(r",(?=[A-Za-z_][\w.]*=)", text) if text else []


def _short(source: str) -> str:
    """The first words of a variant's source, its name: "DiffusionNFT" of "DiffusionNFT, arXiv 2509.16117, Eq. 8"."""
    return re.split(r", |; | \(", source)[0]
