"""How much of an update the harness itself takes: what is neither the model's forward nor its backward pass."""

import tempfile
from pathlib import Path
from time import perf_counter

from bench.config.resolve import describe, resolve
from bench.perf.updates import model_seconds
from bench.registry import find
from bench.store.run import Run
from bench.training.execute import equip, load_backbone
from bench.training.teachers import locate

UPDATES = 8
ONLY_TRAINING = ("evaluation.steps=1", "evaluation.points=[]")


def overhead(method: str = "opd_analytic", updates: int = UPDATES) -> dict:
    """Share of a run's wall time, on the CPU, outside model and scorers; the main job's recipe on micro."""
    from bench.training.loop import Loop, Progress

    spec = resolve(method, ["all"], overrides=[f"budget.updates={updates}", *ONLY_TRAINING])
    descriptor = describe(spec.backbone)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        run = Run(root, spec, descriptor.fingerprint())
        with run.lock():
            run.open()
            backbone = load_backbone(spec.backbone, "cpu", spec.compute)
            lab = equip(spec, descriptor, backbone, locate(spec, descriptor, root, descriptor.fingerprint()))
            method_class = find("method", spec.method)
            loop = Loop(run, lab, method_class(method_class.Options.model_validate(spec.params)), descriptor.shift)
            moments: list[tuple[float, float]] = []
            with model_seconds(backbone) as spent:

                def listen(progress: Progress) -> None:
                    if progress.scores is None:
                        moments.append((perf_counter(), sum(spent)))

                loop.train(listen)
    # From the end of the first update to the end of the last but one: the last is followed by the evaluation.
    (started, model_before), (ended, model_after) = moments[0], moments[-2]
    wall, model = ended - started, model_after - model_before
    return {"method": method, "updates": len(moments) - 2, "wall_s": wall, "model_s": model, "share": 1 - model / wall}
