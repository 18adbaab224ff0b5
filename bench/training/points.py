"""The further students of a run (Method.points): each is saved as a plain adapter and evaluated on every task.

A run with many of them spends long here after its training. Each evaluation is recorded when it is finished, with the
hash of the adapter, so that a run that was stopped goes on with the next one.
"""

from collections.abc import Callable

from bench.api.lab import EMA
from bench.backbones.adapter_files import adapter_hash
from bench.store.names import POINTS, POINTS_LOG
from bench.store.shapes import check_evaluation
from bench.system.files import described, json_bytes, write_atomic
from bench.training.loop import Loop
from bench.training.teacher_sets import TRAINING, training_record
from bench.weights.hub import model_name


def evaluate_points(loop: Loop, say: Callable[[str], None]) -> dict[str, dict[str, dict]]:
    """point -> task -> the record of its evaluation. Afterwards the average is the run's own student again."""
    lab, run, method, workers = loop.lab, loop.run, loop.method, loop.workers
    names = method.points(loop.spec)
    if not names:
        return {}
    # The main process alone reads what it wrote.
    kept = workers.agreed(_finished(loop) if workers.main else {})
    trained = lab.backbone.meter.whole(workers)["evaluations"].get("training", 0)
    found: dict[str, dict[str, dict]] = {}
    for number, point in enumerate(names, 1):
        method.show(lab, point)
        weights = ""
        if workers.main:
            folder = run.folder / POINTS / point
            lab.backbone.adapters.save(EMA, folder, base=model_name(lab.backbone.source))
            write_atomic(folder / TRAINING, json_bytes(training_record(run, loop.step, trained)))
            weights = adapter_hash(folder)
        weights = workers.agreed(weights)
        missing = [task for task in loop.spec.tasks if (point, task, weights) not in kept]
        if missing:
            say(f"evaluating point {number} of {len(names)}: {point}")
        for task in missing:
            with lab.backbone.meter.purpose("evaluation"):
                record = loop.evaluate(EMA, task).record()
            kept[point, task, weights] = record
            run.append(POINTS_LOG, {"point": point, "task": task, "adapter": weights, "record": record})
        found[point] = {task: kept[point, task, weights] for task in loop.spec.tasks}
    method.show(lab, None)
    return found


def _finished(loop: Loop) -> dict[tuple[str, str, str], dict]:
    """(point, task, hash of the adapter) -> the record of every evaluation so far. Raises DamagedError."""
    path = loop.run.folder / POINTS_LOG
    kept = {}
    for row in loop.run.rows(POINTS_LOG):
        with described(path):
            point, task, adapter, record = (row[key] for key in ("point", "task", "adapter", "record"))
        prompts = loop.lab.tasks[task].prompts(loop.spec.evaluation.split) if task in loop.lab.tasks else []
        check_evaluation(path, record, task, len(prompts))
        kept[point, task, adapter] = record
    return kept
