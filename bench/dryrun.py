"""`--dry-run`: the resolved spec, sigmas, per-step loss weights and the predicted cost."""

import yaml

from bench.registry import find
from bench.sampler.weighting import WEIGHTINGS, step_weights
from bench.spec import Spec, describe


def explain(spec: Spec) -> None:
    """Print everything that is decided before a run starts; loads no model and writes nothing."""
    descriptor = describe(spec.backbone)
    sampler = spec.sampler.build(descriptor.shift)
    print(f"# {spec.method}-{spec.digest(descriptor.fingerprint())}-s{spec.seed}")
    print(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False).strip())
    print(
        "\n# step   sigma      h          a          b          c          " + "  ".join(f"w[{w}]" for w in WEIGHTINGS)
    )
    columns = {name: step_weights(sampler, name) for name in WEIGHTINGS}
    for k, at in enumerate(sampler.coefficients):
        numbers = (sampler.schedule.sigmas[k], sampler.schedule.h(k), at.a, at.b, at.c)
        weights = "  ".join(f"{columns[name][k]:<{len(name) + 3}.3g}" for name in WEIGHTINGS)
        print(f"# {k:<5}" + "".join(f"{n:<11.5f}" for n in numbers) + weights)
    per_update = find("method", spec.method).predict(spec, sampler)
    print(f"\n# predicted: {per_update:,} model evaluations an update", end="")
    if spec.budget.updates:
        print(f", {per_update * spec.budget.updates:,} in all", end="")
    elif spec.budget.evaluations:
        print(f", about {-(-spec.budget.evaluations // per_update)} updates in all", end="")
    print(" (forward 1, backward 2, guidance doubles)")
