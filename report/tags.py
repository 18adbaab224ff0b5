"""Scores by the tags of a task's prompts, such as GenEval's six, and on which of them a line ends below the base."""

from collections.abc import Iterator

import numpy as np

from bench.analysis.records import model_rows, paired_pictures
from bench.analysis.stats import Design, Difference, Estimate, estimates, holm, paired_difference
from report.claims import ALPHA
from report.lines import Pool
from report.table import Column, Row, Table
from report.tables import BASE, TEACHERS, references

Parts = dict[tuple[str, str], tuple[np.ndarray, Design]]
"""(task, tag) -> values [S, N] of its images, and their design."""


def tags_table(pool: Pool, prefix: str) -> Table | None:
    """One row per line, the base and the tasks' own teachers; None if no task has more than one tag."""
    tagged = _tagged(pool)
    if not tagged:
        return None
    table = Table(
        f"{prefix}tags",
        f"Scores by tag: {pool.title}",
        "Means of the headline over a tag's images, with 95% intervals. A task's score is the unweighted mean over its "
        "tags. Base and teachers as in the table of scores.",
        [
            Column("line", "method"),
            *(Column(f"{task} {tag}", f"{task}: {tag}", "score") for task, tags in tagged.items() for tag in tags),
        ],
    )
    student = dict.fromkeys(pool.tasks, "student")
    shown = [(line.label, [record.summary for record in line.records], student) for line in pool.lines]
    shown += [row for row in references(pool) if row[0] in (BASE, TEACHERS)]
    rows: list[Row] = [{"line": label} for label, *_ in shown]
    parts = [_parts(summaries, models, tagged) for _, summaries, models in shown]
    for key in parts[0]:
        for index, found in _estimated([part[key] for part in parts]):
            rows[index][f"{key[0]} {key[1]}"] = found
    table.rows = rows
    return table


def below_table(pool: Pool, prefix: str) -> Table | None:
    """One row per line and tag on which the line is significantly below the base; None if there is none."""
    tagged = _tagged(pool)
    found: list[tuple[str, tuple[str, str], Difference]] = []
    for line in pool.lines if tagged else ():
        summaries = [record.summary for record in line.records]
        # One seed says nothing about a method.
        if len(summaries) < 2 or not all("base" in summary["models"] for summary in summaries):
            continue
        student = _parts(summaries, dict.fromkeys(tagged, "student"), tagged)
        base = _parts(summaries, dict.fromkeys(tagged, "base"), tagged)
        for key, (values, images) in student.items():
            prompts = images.strata if images.clusters is None else np.unique(images.clusters)
            if len(prompts) < 2:
                continue
            paired_pictures(key[0], images, base[key][1])
            # Intervals take most of a report's time, and a line above the base is not below it whatever its p.
            gap = Difference(float("nan"), float("nan"), float("nan"), 1.0)
            if values.mean() < base[key][0].mean():
                gap = paired_difference(values, base[key][0], images)
            found.append((line.label, key, gap))
    table = Table(
        f"{prefix}below-base",
        f"Tags on which a line ends below the base: {pool.title}",
        "Student minus base, each at the guidance scale of the table of scores, paired by seed and prompt, with "
        "95% intervals (not corrected) and two-sided p-values (Holm's correction over all lines and tags of the "
        f"budget, in which a tag at or above the base counts as a test with p 1); only those with p below {ALPHA:g}. "
        "Not tested: lines of one seed, and tags of one prompt. Where a tag has fewer than ten prompts, intervals are "
        "too narrow. A mean over tags can rise while a tag falls.",
        [
            Column("line", "method"),
            Column("task", "task"),
            Column("tag", "tag"),
            Column("change", "minus the base", "change"),
            Column("p", "p (Holm)", "p"),
        ],
    )
    adjusted = holm([gap.p for _, _, gap in found])
    for (line_label, (task, tag), gap), p in zip(found, adjusted):
        if p < ALPHA:
            table.rows.append({"line": line_label, "task": task, "tag": tag, "change": gap, "p": p})
    return table if table.rows else None


def _tagged(pool: Pool) -> dict[str, list[str]]:
    """Task -> its tags in the order of its prompts, for tasks that have more than one."""
    if not pool.lines:
        return {}
    student = pool.lines[0].records[0].summary["models"]["student"]
    tags = {task: list(dict.fromkeys(map(str, student[task]["strata"]))) for task in pool.tasks}
    return {task: found for task, found in tags.items() if len(found) > 1}


def _parts(summaries: list[dict], models: dict[str, str], tagged: dict[str, list[str]]) -> Parts:
    """The headline of a model by task and tag; `models` has the model of each task."""
    parts: Parts = {}
    for task, tags in tagged.items():
        values, images = model_rows(summaries, models[task], task)
        for tag in tags:
            own = images.strata == tag
            clusters = None if images.clusters is None else images.clusters[own]
            parts[task, tag] = values[:, own], Design(images.strata[own], clusters)
    return parts


def _estimated(parts: list[tuple[np.ndarray, Design]]) -> Iterator[tuple[int, Estimate]]:
    """Place and estimate of each set of values.

    Those of as many seeds and the same prompts share their resamples, which are most of the work.
    """
    alike: dict[tuple, list[int]] = {}
    for place, (values, images) in enumerate(parts):
        clusters = None if images.clusters is None else tuple(images.clusters.tolist())
        alike.setdefault((len(values), clusters), []).append(place)
    for places in alike.values():
        yield from zip(places, estimates([parts[place][0] for place in places], parts[places[0]][1]))
