"""How much memory of a GPU a run will need, said before it starts: what lies there throughout, and each phase's worst
moment. Bytes are counted on shapes (bench/backbones/trial.py), those of stored pictures and states by arithmetic."""

from bench.api.method import Work
from bench.api.scores import pictures_at_once
from bench.backbones.size import Size
from bench.config.spec import Spec
from bench.prediction.cost import branches
from bench.registry import find
from bench.sampler.rollout import Sampler

NOTABLE = 5e8
"""Bytes below which what an update has collected is not told apart."""


def memory_lines(size: Size, spec: Spec, sampler: Sampler) -> list[str]:
    """Memory of one GPU by what it holds throughout, and what each phase needs on top."""
    from bench.backbones.embeddings import MEMORY  # with torch, which a dry run on micro does without

    method, compute = find("method", spec.method), spec.compute
    each = 4 if compute.precision == "float32" else 2
    encoders = each * sum(count for part, count in size.frozen.items() if part != "vae")
    adapter = size.adapter(spec.lora.rank, spec.lora.targets)
    kept = 2 + len(method(method.Options.model_validate(spec.params)).adapters) + len(spec.teachers)
    always = {
        "transformer": size.parameters * each,
        "text encoders": 0 if compute.offload_text_encoders else encoders,
        "VAE": size.frozen.get("vae", 0) * 4,
        f"{kept} adapters, gradient, optimiser": adapter * 4 * (kept + 3),
        "encoded prompts up to": MEMORY,
    }
    moved = {"encoding prompts": encoding_memory(size, spec, sampler, encoders)}
    phases = {
        **(moved if compute.offload_text_encoders else {}),
        **(training_memory(size, spec, sampler) if method.trains else {}),
        **evaluation_memory(size, spec),
    }
    known = {name: amount for name, amount in phases.items() if amount is not None}
    worst = max(known, key=known.__getitem__)
    listed = ", ".join(f"{name} {amount / 1e9:.1f}" for name, amount in always.items())
    told = "; ".join(f"{name} {'not known' if n is None else f'{n / 1e9:.1f}'}" for name, n in phases.items())
    unknown = " or more" if len(known) < len(phases) else ""
    whole = (sum(always.values()) + known[worst]) / 1e9
    return [
        f"predicted memory of one GPU, GB: throughout {listed}; on top of that {told}: {whole:.0f}{unknown} at most "
        f"({worst.split(' (')[0]})",
        "not in this memory: scorers that share the GPU, CUDA's own gigabyte, and what the allocator cannot use",
    ]


def training_memory(size: Size, spec: Spec, sampler: Sampler) -> dict[str, float | None]:
    """Phase of an update -> bytes at its worst moment; None: not known."""
    method, compute, twice = find("method", spec.method), spec.compute, branches(spec.sampler.guidance)
    work = method.work(spec, sampler)
    latents = twice * work.trained_at_once if work else 0
    _, prompt = size.state_bytes(compute)
    collected = stored(size, spec, work) if work else 0
    mine = f" and {collected / 1e9:.1f} of states, velocities and prompts" if collected > NOTABLE else ""
    phases: dict[str, float | None] = {}
    if work and work.drawn:
        drawn = twice * min(work.drawn, compute.batch or work.drawn)
        phases[f"rollouts ({drawn} latents at once)"] = collected + size.sampling(drawn, compute).peak + drawn * prompt
    if work and work.pictures:
        together = decoded_together(size, work.pictures_at_once)
        phases[f"decoding ({together:,} pictures at once)"] = collected + decoded(size, together, spec)
    if latents:
        graph = size.training(latents, spec.lora.rank, spec.lora.targets, compute)
        beside = size.sampling(min(latents, twice * (compute.batch or latents)), compute).peak
        peak = max(graph.peak, graph.kept + beside)  # a teacher or the base looks while the student's graph waits
        phases[f"training (activations of {latents} latents (estimate){mine})"] = collected + peak + latents * prompt
    else:
        phases["training (activations: its largest batch is not known)"] = None
    return phases


def encoding_memory(size: Size, spec: Spec, sampler: Sampler, encoders: int) -> float:
    """Bytes of text encoders that come back from host memory, beside what an update may have of other tasks by then."""
    work = find("method", spec.method).work(spec, sampler)
    return encoders + (stored(size, spec, work) if work and len(spec.tasks) > 1 else 0)


def stored(size: Size, spec: Spec, work: Work) -> int:
    """Bytes of what an update has collected when it takes its losses."""
    latent, prompt = size.state_bytes(spec.compute)
    return work.kept * latent + work.prompts * prompt


def evaluation_memory(size: Size, spec: Spec) -> dict[str, float]:
    """As `training_memory`, of held-out evaluation."""
    batch, compute = spec.evaluation.batch, spec.compute
    latents = branches(spec.evaluation.scale) * min(batch, compute.batch or batch)
    drawn = size.sampling(latents, compute).peak
    return {f"evaluation ({batch} pictures at once)": max(drawn, decoded(size, decoded_together(size, batch), spec))}


def decoded_together(size: Size, pictures: int) -> int:
    """How many of so many pictures lie in memory together, decoded."""
    return min(pictures, pictures_at_once(size.latent_side**2))


def decoded(size: Size, pictures: int, spec: Spec) -> float:
    """Bytes of decoding so many pictures in one call: the decoder's own, and the pictures before and after scaling."""
    one = size.decoding(pictures, spec.compute)
    return (one.peak if one else 0) + 2 * pictures * size.picture_bytes
