"""`bench score`: score a folder of pictures that any tool made, or summarise results made elsewhere."""

import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.analysis.stats import codes
from bench.api.scores import REWARD, Collected, cause_of
from bench.api.task import Task
from bench.config.scorers import view_settings
from bench.errors import BenchError, DamagedError, UsageError, one_line, unknown
from bench.printing import progress_bar
from bench.registry import task_name
from bench.scoring.cache import RememberingTask
from bench.scoring.folders import (
    CACHE,
    JUDGED,
    RESULTS,
    Sample,
    identity,
    is_verdict,
    left_out,
    load,
    read,
    world_of,
)
from bench.scoring.loading import load_task
from bench.scoring.pictures import LARGEST
from bench.system.devices import best_device
from bench.system.files import parse_json, read_lines, read_rows, write_atomic
from bench.training.evaluate import Evaluation
from bench.weights.checkpoints import refuse_stand_in

WORLD = "photo"
"""Kind of pictures unless --world is given."""
LAYOUT = re.compile(r"(.*/)?[0-9]+/samples/[0-9]+\.png")
"""A picture's name in GenEval's layout."""


def score_folder(named: str, source: Path, overrides: list[str], world: str, batch: int) -> None:
    """Score DIR in GenEval's layout, write a line a picture beside them, print the summary.

    GenEval's own lines are the official evaluator's results.jsonl, other tasks' results-<task>.jsonl. A results.jsonl
    instead of a folder is summarised as it is. Raises UsageError for what does not exist, and, once the summary is
    printed, where nothing can be stored.
    """
    name = task_name(named)
    if source.is_file():
        _refuse_options(name, source, overrides, world)
        print_summary(imported(source, name), f"{source} (made elsewhere)")
        return
    if not source.is_dir():
        taken = "bench score takes a folder in GenEval's layout, or a file that holds results.jsonl"
        raise UsageError(f"{source} is a pipe or a device; {taken}" if source.exists() else f"no folder {source}")
    if (made_as := world_of(source) or world) != world:
        raise UsageError(f"the pictures in {source} are of the world {made_as!r}: add --world {made_as}")
    view = view_settings(overrides, (name,), ("scorers",), world)
    task = load_task(name, world, view.scorers.get(name), best_device())
    samples = read(source)
    check_prompts(task, samples)
    own = source / f"results-{name}.jsonl"
    if not may_replace(own):
        raise UsageError(f"{own} was not written by bench score: move it away, as scores are to be stored there")
    task = RememberingTask(task, source / CACHE)
    if said := task.held:
        _say_forgotten(task)  # now: scoring may take long, and all of it will be to do again
    result, lines, failed = scored(task, samples, batch)
    # The official scripts read results.jsonl: it is kept for verdicts, and holds nothing else.
    verdicts = [line for line in lines if "correct" in line]
    official = source / RESULTS
    target = official if verdicts and may_replace(official) else own
    lines = verdicts or lines
    unstored = None
    try:
        write_atomic(target, "".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        unstored = error.strerror or one_line(error)
    print_summary(result, f"{source}, {task.scorer_name}")
    if verdicts and target == own and not unstored:
        print(f"note: {official} was not written by bench score and stays; the verdicts are in {own}", file=sys.stderr)
    say_what_is_missing(left_out(source))
    if task.forgets and not said and not unstored:  # of an unwritable place the error below says enough
        _say_forgotten(task)
    problem = f"{len(failed)} of {len(samples)} pictures could not be scored; they count in no mean: "
    problem = problem + "; ".join([*failed[:3], *filter(None, [result.missing])]) if failed else ""
    if unstored:
        raise UsageError(f"the scores above could not be stored in {target}: {unstored}. {problem}".rstrip(". "))
    if problem:
        raise BenchError(problem)


def _refuse_options(name: str, source: Path, overrides: list[str], world: str) -> None:
    """Raise UsageError for what does not go with verdicts that were made elsewhere."""
    if name != JUDGED:
        raise UsageError(
            f"{source} is a file, and {name} scores folders of pictures; verdicts made elsewhere are of {JUDGED} alone"
        )
    if overrides or world != WORLD:
        given = f"--set {overrides[0]}" if overrides else f"--world {world}"
        raise UsageError(f"{given} says how pictures are scored; {source} holds verdicts made elsewhere: leave it out")


def may_replace(path: Path) -> bool:
    """Whether nothing would be lost with a results file: there is none, or this command wrote it.

    GenEval's own evaluator writes no reward. What cannot be read may be anybody's.
    """
    try:
        return all("filename" in row and REWARD in row for row in read_rows(path))
    except FileNotFoundError:
        return True
    except (OSError, DamagedError):
        return False


def say_what_is_missing(others: list[Path]) -> None:
    """On stderr: what the folder has and the score has not."""
    if others:
        first = ", ".join(str(path) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        print(
            f"note: {len(others)} left out, as GenEval's evaluator does: {first}; it takes DIR/00000/samples/0000.png "
            "(numbered folders, numbered names, .png)",
            file=sys.stderr,
        )


def _say_forgotten(task: RememberingTask) -> None:
    print(f"note: scores are not remembered: {task.forgets}", file=sys.stderr)


def check_prompts(task: Task, samples: list[Sample]) -> None:
    """Raise UsageError, naming the file, for the first prompt that the task cannot score."""
    for home, prompt in {sample.path.parent.parent: sample.prompt for sample in samples}.items():
        try:
            task.check(prompt)
        except UsageError as error:
            raise UsageError(f"{home / 'metadata.jsonl'}: {one_line(error)}") from error


def scored(task: RememberingTask, samples: list[Sample], batch: int) -> tuple[Evaluation, list[dict], list[str]]:
    """Every picture's metrics, the official evaluator's line for each, and which failed (NaN)."""
    ordered: list[Sample] = []
    found = Collected()
    with progress_bar(quiet=not sys.stderr.isatty()) as shown:
        line = shown.add_task(task.name, total=len(samples))
        for chunk, images in batches(samples, batch):
            ordered += chunk
            if isinstance(images, UsageError):
                found.lose(len(chunk), images)
            else:
                found.add(len(chunk), partial(task.score, images, [sample.prompt for sample in chunk]))
            shown.advance(line, len(chunk))
    try:
        scores = found.whole()
    except BenchError as error:
        raise BenchError(f"no picture could be scored: {one_line(error)}") from error
    assert scores is not None  # there is a picture
    result = Evaluation.of(task, [sample.prompt for sample in ordered], scores)
    lines, failed = [], []
    for i, sample in enumerate(ordered):
        detail = scores.details[i] if scores.details else {}
        metrics = {name: float(values[i]) for name, values in result.rows.items()}
        lines.append(official_line(sample, detail, metrics, task.name == JUDGED))
        if np.isnan(metrics[task.headline]):
            cause = cause_of([detail]) or "the scorer gives it no score"
            failed.append(cause if str(sample.path) in cause else f"{sample.path}: {cause}")
    return result, lines, failed


def batches(samples: list[Sample], batch: int) -> Iterator[tuple[list[Sample], torch.Tensor | UsageError]]:
    """Pictures of one size that follow each other, at most `batch` together, and no more pixels than one picture may
    have; the reason instead for a file that is no picture."""
    chunk: list[Sample] = []
    images: list[torch.Tensor] = []
    for sample in samples:
        image: torch.Tensor | UsageError
        try:
            image = load(sample.path)
        except UsageError as error:
            image = error
        if chunk and (
            isinstance(image, UsageError) or image.shape != images[0].shape or len(chunk) == _most(batch, image)
        ):
            yield chunk, torch.stack(images)
            chunk, images = [], []
        if isinstance(image, UsageError):
            yield [sample], image
        else:
            chunk, images = [*chunk, sample], [*images, image]
    if chunk:
        yield chunk, torch.stack(images)


def _most(batch: int, image_CHW: torch.Tensor) -> int:
    """Pictures of this size to score together."""
    return max(1, min(batch, LARGEST // image_CHW[0].numel()))


def official_line(sample: Sample, detail: dict, metrics: dict[str, float], judged: bool = True) -> dict:
    """A line of results.jsonl: the official keys first, then this scorer's metrics; no verdict on a picture that
    could not be scored, or of a task that gives none."""
    prompt = sample.prompt
    official: dict[str, object] = {"filename": str(sample.path), "tag": prompt.stratum, "prompt": prompt.text}
    verdict = metrics.get("official")
    judged = judged and is_verdict(verdict)
    if judged:
        official |= {"correct": bool(verdict), "reason": detail.get("reason", "")}
    official["metadata"] = json.dumps(prompt.metadata)
    if judged:
        official["details"] = json.dumps(detail.get("details", {}))
    return official | {name: None if np.isnan(value) else value for name, value in metrics.items()}


def imported(path: Path, task: str) -> Evaluation:
    """The verdicts of a results.jsonl of the official evaluator, each picture's once.

    "any picture of the prompt" is a value a prompt, as in the official summary: it stands at the prompt's first
    picture, NaN at the others. Raises UsageError for another file, naming the line.
    """
    rows = verdicts_of(path)
    first: dict[str, int] = {}
    any_picture = np.full(len(rows), np.nan)
    correct = np.array([row["correct"] for row in rows], np.float64)
    for i, row in enumerate(rows):
        place = first.setdefault(row["identity"], i)
        any_picture[place] = np.fmax(any_picture[place], correct[i])
    strata = np.array([row["tag"] for row in rows])
    found = {"official": correct, "any picture of the prompt": any_picture}
    return Evaluation(task, "official", strata, found, codes([row["identity"] for row in rows]))


def verdicts_of(path: Path) -> list[dict]:
    """{tag, identity, correct} of every picture in a results.jsonl. Raises UsageError, naming the line.

    A line that is there again is left out, and said to be; two verdicts on one picture are refused. A line without a
    file name is a picture of its own: the official prompts have four pictures each, whose lines may well be alike.
    """
    wrong = f"{path} is no results.jsonl of GenEval's evaluator"
    if path.is_file():
        refuse_stand_in(path, "results.jsonl")
    try:
        rows, lines = read_rows(path), [n for n, line in enumerate(read_lines(path), 1) if line.strip()]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {one_line(error)}") from error
    if len(rows) < len(lines):
        raise DamagedError(f"{wrong}: line {lines[-1]} is no JSON, or is cut off")
    if not rows:
        raise UsageError(f"{path} is empty")
    kept: dict[object, tuple[int, dict]] = {}
    again = 0
    tags = {prompt.stratum for prompt in load_task(JUDGED, WORLD).prompts("test")}
    names = _one_name_each([_picture_name(row.get("filename")) for row in rows], str(path))
    for number, row, named in zip(lines, rows, names, strict=True):
        found = verdict(row, f"{wrong}: line {number}")
        if found["tag"] not in tags:
            raise unknown(f"tag in {path}, line {number}:", found["tag"], tags)
        name = named or number
        before, known = kept.setdefault(name, (number, found))
        if known != found:
            raise UsageError(f"{path}, lines {before} and {number}: two verdicts on one picture, {name!r}")
        again += before != number
    if again:
        print(f"{path}: {again} lines that are there twice count once", file=sys.stderr)
    nameless = [json.dumps(row, sort_keys=True) for row, named in zip(rows, names, strict=True) if not named]
    if alike := len(nameless) - len(set(nameless)):
        print(
            f"{path}: {alike} lines without a filename are like others, and count as pictures of their own: nothing "
            "tells a picture that is there twice from two pictures",
            file=sys.stderr,
        )
    return [row for _, row in kept.values()]


def _picture_name(told: object) -> str:
    """A picture's name with plain slashes, as other systems write it too; empty where none is told."""
    if not isinstance(told, str) or not told.strip():
        return ""
    if told.startswith("file:"):
        told = urllib.parse.unquote(urllib.parse.urlsplit(told).path)
    return os.path.normpath(told.replace("\\", "/"))


def _one_name_each(names: list[str], where: str) -> list[str]:
    """The names, a relative one as the longest one that ends with it. Raises UsageError where several do.

    A relative name stands for another relative one only if it is one of GenEval's layout: of other names, `a.png` and
    `more/a.png` may well be two pictures.
    """
    tails = {name: re.sub(r"^(\.\./)+", "", name) for name in names if name and not _is_absolute(name)}
    ends: dict[str, set[str]] = {}
    depths = {tail.count("/") for tail in tails.values()}
    for name in {tails.get(name, name) for name in names}:
        parts = name.split("/")
        for tail in ("/".join(parts[-depth - 1 :]) for depth in depths if depth < len(parts) - 1):
            if _is_absolute(name) or LAYOUT.fullmatch(tail):
                ends.setdefault(tail, set()).add(name)
    found = {}
    for name, tail in tails.items():
        longest = {end for end in ends.get(tail, ()) if end not in ends}
        if len(longest) > 1:
            raise UsageError(f"{where}: it is not certain which picture {name!r} is: {' or '.join(sorted(longest))}")
        found[name] = longest.pop() if longest else tail if LAYOUT.fullmatch(tail) else name
    return [found.get(name, name) for name in names]


def _is_absolute(name: str) -> bool:
    return re.match("([A-Za-z]:)?/", name) is not None


def verdict(row: dict, where: str) -> dict:
    """{tag, identity, correct} of one line. Raises UsageError, saying `where`."""
    for key in ("tag", "prompt"):
        if not isinstance(row.get(key), str):
            raise UsageError(f"{where} has no {key!r} that is text: {json.dumps(row.get(key))[:60]}")
    correct = row.get("correct")
    if not is_verdict(correct):
        raise UsageError(f"{where}: 'correct' should be true or false, not {json.dumps(correct)[:60]}")
    known = row.get("metadata")
    if isinstance(known, str):  # JSON within JSON, as the evaluator writes it
        with suppress(DamagedError):
            known = parse_json(known, "metadata")
    return {"tag": row["tag"], "identity": identity(row["tag"], row["prompt"], known), "correct": bool(correct)}


def print_summary(found: Evaluation, title: str) -> None:
    """Per stratum, the mean over strata (GenEval's overall) and the mean over pictures, each with its interval.

    A metric that has a value a prompt is averaged over prompts.
    """
    from rich.table import Table

    from bench.printing import terminal

    strata = list(found.parts())
    out = terminal(150)
    out.print(f"{found.task}: {title}, {len(found.strata) - found.failed} pictures", soft_wrap=True)
    table = Table()
    heads = ("metric", *(strata if len(strata) > 1 else []), "mean over tags" if len(strata) > 1 else "mean")
    for head in (*heads, *(["mean over all"] if len(strata) > 1 else [])):
        table.add_column(head)
    for metric in found.rows:
        parts = list(found.parts(metric).values())
        cells = [_mean(part) for part in parts] if len(strata) > 1 else []
        whole = [_mean(np.concatenate(parts))] if len(strata) > 1 else []
        shown = f"{metric} *" if metric == found.headline else metric
        table.add_row(shown, *cells, str(found.estimate(metric)), *whole)
    out.print(table)


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" if len(values) else "none"
