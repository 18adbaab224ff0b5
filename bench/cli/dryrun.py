"""`--dry-run`: the resolved spec, sigmas, per-step loss weights, and the predicted NFE, hours and memory."""

import yaml

from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.prediction.cost import lines, updates
from bench.prediction.footprint import memory_lines
from bench.registry import find
from bench.sampler.rollout import Sampler
from bench.sampler.weighting import WEIGHTINGS, step_weights

UNIT = "in the unit of budgets: a forward pass counts 1, a backward pass 2 by convention, guidance doubles"


def explain(spec: Spec) -> None:
    """Print everything that is decided before a run starts; loads no model and writes nothing."""
    descriptor = describe(spec.backbone)
    sampler = spec.sampler.build(descriptor.shift)
    print(f"# {spec.method}-{spec.digest(descriptor.fingerprint())}-s{spec.seed}")
    print(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False).strip())
    print_steps(sampler)
    print(f"\n# {budget_line(spec, sampler)}")
    count = updates(spec, find("method", spec.method).predict(spec, sampler))
    if note := spec.too_short(count) if count else "":
        print(f"# note: {note}")
    if descriptor.size and (size := descriptor.size(spec.compute)) is None:
        print("# hours and memory: the model's size is not known before it is fetched")
    elif descriptor.size:
        for line in (*lines(spec, descriptor, size, sampler), *memory_lines(size, spec, sampler)):
            print(f"# {line}")


def print_steps(sampler: Sampler) -> None:
    """A table of the sampler's steps: coefficients, and what each weighting makes of them."""
    print(
        "\n# step   sigma      h          a          b          c          " + "  ".join(f"w[{w}]" for w in WEIGHTINGS)
    )
    columns = {name: step_weights(sampler, name) for name in WEIGHTINGS}
    for k, at in enumerate(sampler.coefficients):
        numbers = (sampler.schedule.sigmas[k], sampler.schedule.h(k), at.a, at.b, at.c)
        weights = "  ".join(f"{columns[name][k]:<{len(name) + 3}.3g}" for name in WEIGHTINGS)
        print(f"# {k:<5}" + "".join(f"{n:<11.5f}" for n in numbers) + weights)


def budget_line(spec: Spec, sampler: Sampler) -> str:
    """How much of the budget an update takes."""
    method = find("method", spec.method)
    per_update = method.predict(spec, sampler)
    if not method.trains:
        return "predicted: no training, 0 NFE"
    told = f"predicted: {per_update:,} NFE per update"
    if spec.budget.updates:
        told += f", {per_update * spec.budget.updates:,} in all"
    elif count := updates(spec, per_update):
        told += f", about {count} updates in all"
    return f"{told} ({UNIT})"
