"""`--dry-run`: the resolved spec, sigmas, per-step loss weights, and the predicted evaluations, hours and memory."""

import yaml

from bench.backbones.size import Size
from bench.registry import find
from bench.sampler.weighting import WEIGHTINGS, step_weights
from bench.spec import Spec, describe

GPU, PEAK, UTILISATION = "H100 SXM", 989e12, 0.4
"""What GPU-hours are said for: dense bfloat16, and a share of it that training codes reach."""


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
    elif spec.budget.evaluations and per_update:
        print(f", about {-(-spec.budget.evaluations // per_update)} updates in all", end="")
    print(" (forward 1, backward 2, guidance doubles)")
    if descriptor.size and (size := descriptor.size(spec.compute)) is None:
        print("# hours and memory: the model's size is not known before it is fetched")
    elif descriptor.size:
        evaluations = spec.budget.evaluations or per_update * (spec.budget.updates or 0)
        for line in (*(hours(size, evaluations) if evaluations else []), *memory_lines(size, spec)):
            print(f"# {line}")


def hours(size: Size, evaluations: float) -> list[str]:
    """Arithmetic of all training evaluations, and how long it takes a GPU that is as busy as assumed."""
    total = evaluations * size.flops
    spent = total / (PEAK * UTILISATION) / 3600
    return [
        f"predicted: {size.flops / 1e12:.2f} TFLOP a model evaluation, {total:.2e} FLOP of training: about "
        f"{spent:,.0f} hours of one {GPU} at {UTILISATION:.0%} of its {PEAK / 1e12:.0f} TFLOP/s; scoring, held-out "
        "evaluation and recomputation come on top"
    ]


def memory_lines(size: Size, spec: Spec) -> list[str]:
    """Memory of one GPU by what it holds; activations are an estimate (bench/backbones/size.py)."""
    method, compute = find("method", spec.method), spec.compute
    each = 4 if compute.precision == "float32" else 2
    encoders = sum(count for part, count in size.frozen.items() if part != "vae")
    adapter = size.adapter(spec.lora.rank, spec.lora.targets)
    kept = 2 + len(method(method.Options.model_validate(spec.params)).adapters) + len(spec.teachers)
    latents = method.largest_batch(spec) * (1 if spec.sampler.guidance == 1 else 2)
    parts = {
        "transformer": size.parameters * each,
        "text encoders": 0 if compute.offload_text_encoders else encoders * each,
        "VAE": size.frozen.get("vae", 0) * 4,
        f"{kept} adapters, gradient, optimiser": adapter * 4 * (kept + 3),
        f"activations of {latents} latents (estimate)": size.activations(latents, compute.gradient_checkpointing, each),
    }
    listed = ", ".join(f"{name} {amount / 1e9:.1f}" for name, amount in parts.items())
    return [f"predicted memory, GB: {listed}; {sum(parts.values()) / 1e9:.0f} in all"]
