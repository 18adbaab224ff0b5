"""What a run is called does not move: every stored reference run still has the folder name that its spec gives today."""

import json
from collections.abc import Iterator
from pathlib import Path

from bench.config.spec import Spec
from tests.archives import members

REFERENCE = Path(__file__).parent.parent / "results" / "reference"


def stored() -> Iterator[tuple[str, dict]]:
    """(folder name, content of spec.json) of every stored run."""
    for path in sorted(REFERENCE.rglob("spec.json")):
        yield path.parent.name, json.loads(path.read_text(encoding="utf-8"))
    for archive in sorted(REFERENCE.rglob("*.tar.xz")):
        for place, text in members([archive], "spec.json"):
            yield place.parent.name, json.loads(text)


def test_stored_runs_have_the_names_that_their_specs_give_today() -> None:
    moved, count = [], 0
    for name, content in stored():
        spec = Spec.model_validate(content["spec"])
        count += 1
        if name != (now := f"{spec.method}-{spec.digest(content['backbone_hash'])}-s{spec.seed}"):
            moved.append(f"{name} is now {now}")
    assert count > 100
    assert not moved, moved
