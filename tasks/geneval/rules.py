"""GenEval's decision rules on detections: official, strict and partial (see the official evaluator's README).

The rules do not depend on a detector: they read objects by class, each with a box, a confidence and a colour. All
comparisons are in float32, as in the official evaluator: a confidence of float32(0.3), which is slightly more than 0.3,
is not above the threshold.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Objects need a confidence strictly above the threshold; counting prompts use the second."""
MAX_OBJECTS = 16
"""Most objects kept per class."""
POSITION_THRESHOLD = 0.1
"""Share of the two boxes' summed size by which they may be offset without standing in a relation."""


@dataclass(frozen=True)
class DetectedObject:
    """A detected object: `box` is (x1, y1, x2, y2) in pixels; box and score have float32 values."""

    box: tuple[float, float, float, float]
    score: float
    colour: str


Objects = dict[str, list[DetectedObject]]


def select(objects: Objects, tag: str) -> Objects:
    """Keep what the official evaluator keeps: objects strictly above the threshold, most confident first, 16 per class.

    Equally confident objects keep their order. The official evaluator takes the last of them first, so the reader of
    detections passes them in reverse order (tasks/geneval/photo.py).
    """
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    kept = {}
    for name, found in objects.items():
        scores_N = np.array([o.score for o in found], np.float32)
        order = np.argsort(-scores_N, kind="stable")
        best = order[scores_N[order] > threshold][:MAX_OBJECTS].tolist()
        if best:
            kept[name] = [found[i] for i in best]
    return kept


def relations(a: DetectedObject, b: DetectedObject) -> set[str]:
    """Relations of `a` to `b`: none, one or two of "left of", "right of", "above" and "below"."""
    box_a, box_b = (np.array(o.box, np.float32).reshape(2, 2) for o in (a, b))
    offset = box_a.mean(0) - box_b.mean(0)
    size_a, size_b = (np.abs(np.diff(box, axis=0)[0]) for box in (box_a, box_b))
    dims = size_a + size_b
    beyond = np.abs(offset) - np.float32(POSITION_THRESHOLD) * dims
    revised = np.maximum(beyond, 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    tests = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in tests.items() if holds}


def _in_place(objects: list[DetectedObject], targets: list[DetectedObject], relation: str) -> str:
    """Empty if every pair stands in the relation, else a text with the relations of the first pair that does not."""
    for a in objects:
        for b in targets:
            actual = relations(a, b)
            if relation not in actual:
                return f"found {' and '.join(sorted(actual))} target"
    return ""


def official(objects: Objects, metadata: dict[str, Any], colours: tuple[str, ...]) -> tuple[bool, str]:
    """The official verdict and its reason, for selected objects (see `select`) and a prompt record.

    The reasons are worded as in the official evaluator's results.
    """
    reasons: list[str] = []
    # Per clause its objects, or None if it failed: a relation to a failed clause fails too.
    groups: list[list[DetectedObject] | None] = []
    for clause in metadata.get("include", []):
        name, count = clause["class"], clause["count"]
        # The official rule reads only the `count` most confident objects.
        found = objects.get(name, [])[:count]
        ok = len(found) == count
        if not ok:
            reasons.append(f"expected {name}>={count}, found {len(found)}")
        else:
            if "color" in clause:
                seen = [o.colour for o in found]
                if seen.count(clause["color"]) < count:
                    ok = False
                    others = ", ".join(f"{seen.count(c)} {c}" for c in colours if c in seen)
                    matching = f"found {seen.count(clause['color'])} {clause['color']}"
                    reasons.append(f"expected {clause['color']} {name}>={count}, {matching}; and {others}")
            if "position" in clause and ok:
                relation, target = clause["position"]
                if groups[target] is None:
                    ok = False
                    reasons.append(f"no target for {name} to be {relation}")
                elif problem := _in_place(found, groups[target], relation):
                    ok = False
                    reasons.append(f"expected {name} {relation} target, {problem}")
        groups.append(found if ok else None)
    failed = bool(reasons)
    for clause in metadata.get("exclude", []):
        found = objects.get(clause["class"], [])
        if len(found) >= clause["count"]:
            failed = True
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {len(found)}")
    return not failed, "\n".join(reasons)


def strict(objects: Objects, metadata: dict[str, Any]) -> bool:
    """Flow-GRPO's strict variant: exactly `count` objects per class, all in the right colour; ignores `exclude`."""
    groups: list[list[DetectedObject] | None] = []
    correct = True
    for clause in metadata.get("include", []):
        found = objects.get(clause["class"], [])
        ok = len(found) == clause["count"]
        if ok and "color" in clause:
            ok = sum(o.colour == clause["color"] for o in found) == clause["count"]
        if ok and "position" in clause:
            relation, target = clause["position"]
            ok = groups[target] is not None and not _in_place(found, groups[target], relation)
        groups.append(found if ok else None)
        correct &= ok
    return correct


def partial(objects: Objects, metadata: dict[str, Any]) -> float:
    """Flow-GRPO's training reward: the mean of per-clause credits. It is negative if far too many objects are found.

    A failed relation adds both a 0 and a 1, as in the published reward server (two objects on the wrong sides: 0.75).
    """
    terms: list[float] = []
    groups: list[list[DetectedObject] | None] = []
    for clause in metadata.get("include", []):
        found, count = objects.get(clause["class"], []), clause["count"]
        ok = len(found) == count
        terms.append(1 - abs(count - len(found)) / count)
        if not ok:
            if "color" in clause or "position" in clause:
                terms.append(0.0)
        else:
            if "color" in clause:
                hits = sum(o.colour == clause["color"] for o in found)
                ok = hits == count
                terms.append(1 - abs(count - hits) / count)
            if "position" in clause and ok:
                relation, target = clause["position"]
                if groups[target] is None:
                    ok = False
                    terms.append(0.0)
                else:
                    if _in_place(found, groups[target], relation):
                        ok = False
                        terms.append(0.0)
                    terms.append(1.0)
        groups.append(found if ok else None)
    return float(np.mean(terms))
