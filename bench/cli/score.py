"""`bench score`: score a folder of images from any tool, or summarise verdicts of GenEval's own evaluator."""

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

from bench.analysis.metric_names import REWARD
from bench.analysis.stats import codes
from bench.api.scores import Collected, cause_of
from bench.api.task import Task
from bench.config.scorers import view_settings
from bench.errors import BenchError, DamagedError, UsageError, one_line, unknown
from bench.printing import print_published, progress_bar
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
"""Kind of images unless --world is given."""
LAYOUT = re.compile(r"(.*/)?[0-9]+/samples/[0-9]+\.png")
"""The path of an image in GenEval's layout."""


def score_folder(named: str, source: Path, overrides: list[str], world: str, batch: int) -> None:
    """Score a folder in GenEval's layout, write one line per image into it, and print the summary.

    GenEval's scores are written to results.jsonl in the official evaluator's format, those of other tasks to
    results-<task>.jsonl. If `source` is a results.jsonl instead of a folder, its verdicts are summarised. Raises
    UsageError if `source` cannot be scored or, after printing the summary, if the scores cannot be stored, and
    BenchError at the end if some images could not be scored.
    """
    name = task_name(named)
    if source.is_file():
        _refuse_options(name, source, overrides, world)
        print_summary(imported(source, name), f"{source} (existing verdicts)")
        return
    if not source.exists():
        raise UsageError(f"no folder {source}")
    if not source.is_dir():
        raise UsageError(f"{source} is a pipe or a device; give a folder in GenEval's layout, or a results.jsonl file")
    if (made_as := world_of(source) or world) != world:
        raise UsageError(f"the images in {source} are from the world {made_as!r}, not {world!r}: add --world {made_as}")
    view = view_settings(overrides, (name,), ("scorers",), world)
    task = load_task(name, world, view.scorers.get(name), best_device())
    samples = read(source)
    check_prompts(task, samples)
    own = source / f"results-{name}.jsonl"
    if not may_replace(own):
        raise UsageError(f"{own} was not written by bench score, which stores its scores there: move it away")
    task = RememberingTask(task, source / CACHE)
    if locked := task.held:
        # Before scoring, which may take long and would have to be repeated in full: the user can still stop it.
        _warn_not_cached(task)
    result, lines, failed = scored(task, samples, batch)
    # The official scripts read results.jsonl, so it only ever holds verdicts.
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
    print_published(name, task.published([sample.prompt for sample in samples], result.rows))
    if verdicts and target == own and not unstored:
        print(
            f"note: {official} was not written by bench score and is kept; the verdicts are in {own}", file=sys.stderr
        )
    say_what_is_missing(left_out(source))
    if task.forgets and not locked and not unstored:  # for an unwritable folder, the error below says enough
        _warn_not_cached(task)
    problem = ""
    if failed:
        causes = [*failed[:3], *filter(None, [result.missing])]
        problem = (
            f"{len(failed)} of {len(samples)} images could not be scored; they are left out of all means: "
            f"{'; '.join(causes)}"
        )
    if unstored:
        raise UsageError(f"the scores above could not be stored in {target}: {unstored}. {problem}".rstrip(". "))
    if problem:
        raise BenchError(problem)


def _refuse_options(name: str, source: Path, overrides: list[str], world: str) -> None:
    """Raise UsageError for a task or option that cannot be combined with a file of existing verdicts."""
    if name != JUDGED:
        raise UsageError(
            f"{source} is a file, and task {name} scores folders of images; files of existing verdicts are supported "
            f"for {JUDGED} only"
        )
    if overrides or world != WORLD:
        given = f"--set {overrides[0]}" if overrides else f"--world {world}"
        raise UsageError(f"{given} changes how images are scored, but {source} holds existing verdicts: leave it out")


def may_replace(path: Path) -> bool:
    """Whether a results file may be overwritten: it does not exist, or `bench score` wrote it.

    Files of GenEval's own evaluator contain no reward, which tells them apart. An unreadable file is never replaced.
    """
    try:
        return all("filename" in row and REWARD in row for row in read_rows(path))
    except FileNotFoundError:
        return True
    except (OSError, DamagedError):
        return False


def say_what_is_missing(others: list[Path]) -> None:
    """Print a note to stderr on files in the folder that were not scored."""
    if others:
        first = ", ".join(str(path) for path in others[:3])
        more = ", ..." if len(others) > 3 else ""
        print(
            f"note: {len(others)} left out, as GenEval's evaluator does: {first}{more}; it takes "
            "DIR/00000/samples/0000.png (numbered folders, numbered names, .png)",
            file=sys.stderr,
        )


def _warn_not_cached(task: RememberingTask) -> None:
    print(f"note: scores are not cached: {task.forgets}", file=sys.stderr)


def check_prompts(task: Task, samples: list[Sample]) -> None:
    """Raise UsageError, naming the file, for the first prompt that the task cannot score."""
    prompts = {sample.path.parent.parent: sample.prompt for sample in samples}
    for home, prompt in prompts.items():
        try:
            task.check(prompt)
        except UsageError as error:
            raise UsageError(f"{home / 'metadata.jsonl'}: {one_line(error)}") from error


def scored(task: RememberingTask, samples: list[Sample], batch: int) -> tuple[Evaluation, list[dict], list[str]]:
    """Every image's metrics, one results.jsonl line per image, and a message per image without a score (NaN).

    Raises BenchError if no image could be scored.
    """
    ordered: list[Sample] = []
    found = Collected()
    with progress_bar(quiet=not sys.stderr.isatty()) as shown:
        bar = shown.add_task(task.name, total=len(samples))
        for chunk, images in batches(samples, batch):
            ordered += chunk
            if isinstance(images, UsageError):
                found.lose(len(chunk), images)
            else:
                prompts = [sample.prompt for sample in chunk]
                found.add(len(chunk), partial(task.score, images, prompts))
            shown.advance(bar, len(chunk))
    try:
        scores = found.whole()
    except BenchError as error:
        raise BenchError(f"no image could be scored: {one_line(error)}") from error
    assert scores is not None  # read() raises for a folder without images
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
    """(samples, images BCHW) of consecutive images of equal size; the error instead of images for an unreadable file.

    A batch has at most `batch` images, and at most as many pixels as the largest image that is accepted.
    """
    chunk: list[Sample] = []
    images: list[torch.Tensor] = []
    for sample in samples:
        image: torch.Tensor | UsageError
        try:
            image = load(sample.path)
        except UsageError as error:
            image = error
        if chunk and not _fits(image, images, batch):
            yield chunk, torch.stack(images)
            chunk, images = [], []
        if isinstance(image, UsageError):
            yield [sample], image
        else:
            chunk, images = [*chunk, sample], [*images, image]
    if chunk:
        yield chunk, torch.stack(images)


def _fits(image: torch.Tensor | UsageError, images: list[torch.Tensor], batch: int) -> bool:
    """Whether an image may join the batch `images`, which is not empty."""
    if isinstance(image, UsageError) or image.shape != images[0].shape:
        return False
    return len(images) != max(1, min(batch, LARGEST // image[0].numel()))


def official_line(sample: Sample, detail: dict, metrics: dict[str, float], judged: bool = True) -> dict:
    """A line of results.jsonl: the official evaluator's keys first, then this scorer's metrics.

    The keys of a verdict are left out for an image that could not be scored, and if the task gives none (`judged`).
    """
    prompt = sample.prompt
    official: dict[str, object] = {
        "filename": str(sample.path),
        "tag": prompt.stratum,
        "prompt": prompt.text,
    }
    verdict = metrics.get("official")
    judged = judged and is_verdict(verdict)
    if judged:
        official |= {"correct": bool(verdict), "reason": detail.get("reason", "")}
    official["metadata"] = json.dumps(prompt.metadata)
    if judged:
        official["details"] = json.dumps(detail.get("details", {}))
    # NaN is not valid JSON.
    return official | {name: None if np.isnan(value) else value for name, value in metrics.items()}


def imported(path: Path, task: str) -> Evaluation:
    """The verdicts of the official evaluator's results.jsonl, one per image.

    The metric "any picture of the prompt" has one value per prompt, as in the official summary: it is stored at the
    prompt's first image, and the others have NaN. Raises UsageError, naming the line, for a file that is not such a
    results.jsonl.
    """
    rows = verdicts_of(path)
    first: dict[str, int] = {}
    any_picture = np.full(len(rows), np.nan)
    correct = np.array([row["correct"] for row in rows], np.float64)
    for i, row in enumerate(rows):
        index = first.setdefault(row["identity"], i)
        any_picture[index] = np.fmax(any_picture[index], correct[i])  # fmax takes the number where the other is NaN
    strata = np.array([row["tag"] for row in rows])
    found = {"official": correct, "any picture of the prompt": any_picture}
    return Evaluation(task, "official", strata, found, codes([row["identity"] for row in rows]))


def verdicts_of(path: Path) -> list[dict]:
    """{tag, identity, correct} of every image in a results.jsonl.

    A repeated line counts once, with a note. A line without a filename counts as a separate image: the official prompts
    have four images each, whose lines may be equal. Raises UsageError, naming the line, for a file in another format
    and for two different verdicts on one image.
    """
    wrong = f"{path} is not a results.jsonl of GenEval's evaluator"
    if path.is_file():
        refuse_stand_in(path, "results.jsonl")
    try:
        rows = read_rows(path)
        lines = [number for number, line in enumerate(read_lines(path), 1) if line.strip()]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {one_line(error)}") from error
    # read_rows skips a last line that was being written when its writer stopped.
    if len(rows) < len(lines):
        raise DamagedError(f"{wrong}: line {lines[-1]} is not valid JSON, or is truncated")
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
            raise UsageError(f"{path}, lines {before} and {number}: two different verdicts on one image, {name!r}")
        again += before != number
    if again:
        print(f"{path}: {again} repeated lines count once", file=sys.stderr)
    unnamed_rows = [row for row, named in zip(rows, names, strict=True) if not named]
    unnamed = [json.dumps(row, sort_keys=True) for row in unnamed_rows]
    if alike := len(unnamed) - len(set(unnamed)):
        print(
            f"{path}: {alike} lines without a filename are equal to others and count as separate images, because "
            "a repeated line cannot be told from a second image",
            file=sys.stderr,
        )
    return [row for _, row in kept.values()]


def _picture_name(filename: object) -> str:
    """An image's normalised path with forward slashes, whichever system wrote it; empty if there is no filename."""
    if not isinstance(filename, str) or not filename.strip():
        return ""
    if filename.startswith("file:"):
        filename = urllib.parse.unquote(urllib.parse.urlsplit(filename).path)
    return os.path.normpath(filename.replace("\\", "/"))


def _one_name_each(names: list[str], where: str) -> list[str]:
    """One name per image: a relative path becomes the longest of the other paths that end with it.

    The longer path must be absolute, or the shared part a path in GenEval's layout: otherwise `a.png` and `more/a.png`
    may well be two images. Raises UsageError, naming the file `where`, if several paths are possible.
    """
    relative = [name for name in names if name and not _is_absolute(name)]
    tails = {name: re.sub(r"^(\.\./)+", "", name) for name in relative}
    ends: dict[str, set[str]] = {}  # the end of a path -> the longer paths that have this end
    depths = {tail.count("/") for tail in tails.values()}
    for name in {tails.get(name, name) for name in names}:
        parts = name.split("/")
        shorter = [depth for depth in depths if depth < len(parts) - 1]
        for depth in shorter:
            tail = "/".join(parts[-depth - 1 :])
            if _is_absolute(name) or LAYOUT.fullmatch(tail):
                ends.setdefault(tail, set()).add(name)
    found = {}
    for name, tail in tails.items():
        longest = {end for end in ends.get(tail, ()) if end not in ends}
        if len(longest) > 1:
            candidates = " or ".join(sorted(longest))
            raise UsageError(f"{where}: {name!r} is ambiguous, it may be {candidates}: write its full path")
        if longest:
            found[name] = longest.pop()
        else:
            found[name] = tail if LAYOUT.fullmatch(tail) else name
    return [found.get(name, name) for name in names]


def _is_absolute(name: str) -> bool:
    """Whether a path is absolute on any system, also one with a drive letter."""
    return re.match("([A-Za-z]:)?/", name) is not None


def verdict(row: dict, where: str) -> dict:
    """{tag, identity, correct} of one line. Raises UsageError, whose message begins with `where`."""
    for key in ("tag", "prompt"):
        if not isinstance(row.get(key), str):
            raise UsageError(f"{where}: {key!r} should be text, not {json.dumps(row.get(key))[:60]}")
    correct = row.get("correct")
    if not is_verdict(correct):
        raise UsageError(f"{where}: 'correct' should be true or false, not {json.dumps(correct)[:60]}")
    known = row.get("metadata")
    if isinstance(known, str):  # JSON within JSON, as the evaluator writes it
        with suppress(DamagedError):
            known = parse_json(known, "metadata")
    tag = row["tag"]
    return {"tag": tag, "identity": identity(tag, row["prompt"], known), "correct": bool(correct)}


def print_summary(found: Evaluation, title: str) -> None:
    """Print every metric's mean per tag, over tags (GenEval's overall score, with its interval) and over all images.

    A metric with one value per prompt is averaged over prompts.
    """
    from rich.table import Table

    from bench.printing import terminal

    strata = list(found.parts())
    several = len(strata) > 1
    out = terminal(150)
    out.print(f"{found.task}: {title}, {len(found.strata) - found.failed} images", soft_wrap=True)
    table = Table()
    heads = ("metric", *strata, "mean over tags", "mean over all") if several else ("metric", "mean")
    for head in heads:
        table.add_column(head)
    for metric in found.rows:
        shown = f"{metric} *" if metric == found.headline else metric
        mean = str(found.estimate(metric))
        if several:
            parts = list(found.parts(metric).values())
            table.add_row(shown, *map(_mean, parts), mean, _mean(np.concatenate(parts)))
        else:
            table.add_row(shown, mean)
    out.print(table)


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" if len(values) else "none"
