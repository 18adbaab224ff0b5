"""The harness's overhead: the share of an update's time outside the model's forward and backward passes."""

import tempfile
from pathlib import Path
from time import perf_counter

from bench.config.resolve import describe, resolve
from bench.perf.updates import model_seconds
from bench.registry import find
from bench.store.run import Run
from bench.training.execute import equip, load_backbone
from bench.training.teachers import locate

WARM_UP = 3
"""First updates, which are not measured: in them every task lays out its training prompts, once a run."""
UPDATES = 8
"""Updates that are measured."""
ONLY_TRAINING = ("evaluation.steps=1", "evaluation.points=[]")
"""Settings that keep the held-out evaluation, which is not measured, short."""


def overhead(method: str = "opd_analytic") -> dict:
    """Share of training's wall time outside the model, for a method's recipe on micro, on the CPU."""
    from bench.training.loop import Loop, Progress

    spec = resolve(method, ["all"], overrides=[f"budget.updates={WARM_UP + UPDATES + 1}", *ONLY_TRAINING])
    descriptor = describe(spec.backbone)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        run = Run(root, spec, descriptor.fingerprint())
        with run.lock():
            run.open()
            backbone = load_backbone(spec.backbone, "cpu", spec.compute)
            lab = equip(spec, descriptor, backbone, locate(spec, descriptor, root, descriptor.fingerprint()))
            method_class = find("method", spec.method)
            options = method_class.Options.model_validate(spec.params)
            loop = Loop(run, lab, method_class(options), descriptor.evaluation_sampler(spec))
            moments: list[tuple[float, float]] = []  # (wall clock, seconds in the model so far) after each update
            with model_seconds(backbone) as spent:

                def listen(progress: Progress) -> None:
                    if progress.scores is None and not progress.doing:
                        moments.append((perf_counter(), sum(spent)))

                loop.listen = listen
                loop.train()
    # The last update is followed by the held-out evaluation, and is not measured either.
    (started, model_before), (ended, model_after) = moments[WARM_UP - 1], moments[-2]
    wall, model = ended - started, model_after - model_before
    return {
        "method": method,
        "updates": UPDATES,
        "wall_s": wall,
        "model_s": model,
        "share": 1 - model / wall,
    }
