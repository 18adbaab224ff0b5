"""`--dry-run`: the resolved spec, sigmas, per-step loss weights, and the predicted NFE, GPU-hours and memory."""

import yaml

from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.prediction.cost import lines, updates
from bench.prediction.footprint import memory_lines
from bench.registry import find
from bench.sampler.rollout import Sampler
from bench.sampler.weighting import WEIGHTINGS, step_weights

UNIT = "budget units: a forward pass counts 1, a backward pass 2 by convention, and guidance doubles both"


def explain(spec: Spec) -> None:
    """Print everything that is decided before a run starts. Loads no model and writes nothing."""
    descriptor = describe(spec.backbone)
    sampler = descriptor.sampler(spec)
    print(f"# {spec.method}-{spec.digest(descriptor.fingerprint())}-s{spec.seed}")
    print(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False).strip())
    print_steps(sampler)
    print(f"\n# {budget_line(spec, sampler)}")
    count = updates(spec, find("method", spec.method).predict(spec, sampler))
    if note := spec.too_short(count) if count else "":
        print(f"# note: {note}")
    if descriptor.size and (size := descriptor.size(spec.compute)) is None:
        print("# hours and memory: not predicted, because the model's size is not known before it is downloaded")
    elif descriptor.size:
        evaluated = descriptor.size(spec.evaluation_compute)
        predictions = (*lines(spec, descriptor, size, sampler), *memory_lines(size, evaluated, spec, sampler))
        for line in predictions:
            print(f"# {line}")


def print_steps(sampler: Sampler) -> None:
    """Print a table of the sampler's steps: sigma, step size, coefficients, and the loss weights of each weighting."""
    heads = "  ".join(f"w[{w}]" for w in WEIGHTINGS)
    print(f"\n# step   sigma      h          a          b          c          {heads}")
    columns = {name: step_weights(sampler, name) for name in WEIGHTINGS}
    schedule = sampler.schedule
    for k, at in enumerate(sampler.coefficients):
        numbers = (schedule.sigmas[k], schedule.h(k), at.a, at.b, at.c)
        weights = "  ".join(f"{columns[name][k]:<{len(name) + 3}.3g}" for name in WEIGHTINGS)
        print(f"# {k:<5}" + "".join(f"{n:<11.5f}" for n in numbers) + weights)


def budget_line(spec: Spec, sampler: Sampler) -> str:
    """The predicted NFE per update and in total, as a line of text."""
    method = find("method", spec.method)
    per_update = method.predict(spec, sampler)
    if not method.trains:
        return "predicted: no training, 0 NFE"
    text = f"predicted: {per_update:,} NFE per update"
    if spec.budget.updates:
        text += f", {per_update * spec.budget.updates:,} in total"
    elif count := updates(spec, per_update):
        text += f", about {count} updates in total"
    return f"{text} ({UNIT})"
