"""Predicted GPU memory of a run: what it holds throughout, and the additional peak of each phase.

Bytes of passes are counted on shapes (bench/backbones/trial.py), those of stored images and states by arithmetic.
"""

from bench.api.method import Work
from bench.api.scores import pictures_at_once
from bench.backbones.adapters import Shape, student_shape
from bench.backbones.size import Size
from bench.backbones.teacher_files import whole_teachers
from bench.config.optimizers import copies_of_state
from bench.config.spec import Spec
from bench.registry import find
from bench.sampler.rollout import Sampler

NOTABLE = 5e8
"""Bytes above which the training line lists an update's collected states, velocities and prompts separately."""


def memory_lines(size: Size, evaluated: Size, spec: Spec, sampler: Sampler) -> list[str]:
    """Lines on the memory of one GPU: what it holds throughout, and what each phase needs in addition.

    `evaluated` is the size at the resolution of evaluations.
    """
    # Imported here because it loads torch, which a dry run on micro does not need.
    from bench.backbones.embeddings import MEMORY

    method, compute = find("method", spec.method), spec.compute
    each = 4 if compute.precision == "float32" else 2
    encoders = each * sum(count for part, count in size.frozen.items() if part != "vae")
    student = size.student(student_shape(spec))
    options = method.Options.model_validate(spec.params)
    whole = whole_teachers(spec.teachers)
    kept = 2 + len(method(options).adapters)
    teachers = len(spec.teachers) - len(whole)
    # A teacher is taken to have the shape of the student's adapter, or that of the default adapter.
    adapters = teachers * size.student(Shape.of(spec.lora)) if teachers else 0
    names = f"{kept} models and {teachers}" if spec.full_finetuning else f"{kept + teachers}"
    split = " (divided by the processes)" if compute.shard else ""
    # Students, gradient and optimiser stay in float32, as does the VAE.
    trained = 1 + copies_of_state(spec.optimizer)
    always = {
        f"transformer{split}": size.parameters * each,
        "text encoders": 0 if compute.offload_text_encoders else encoders,
        "VAE": size.frozen.get("vae", 0) * 4,
        f"{names} adapters, gradient, optimiser": 4 * (student * (kept + trained) + adapters),
        "encoded prompts up to": MEMORY,
    }
    if whole:
        held = max(whole.values()) if compute.offload_teachers else sum(whole.values())
        always[f"whole teachers{split}"] = held * each
    phases: dict[str, float | None] = {}
    if compute.offload_text_encoders:
        phases["encoding prompts"] = encoding_memory(size, spec, sampler, encoders)
    if method.trains:
        phases |= training_memory(size, spec, sampler)
        # One gradient per task is held apart, beside the one that the optimizer reads, and two while they are combined.
        apart = 4 * student * len(spec.tasks) if method(options).combines() else 0
        for name, amount in phases.items():
            if apart and amount is not None and name.startswith("training"):
                phases[name] = amount + apart
        if apart:
            phases["combining gradients"] = apart + 2 * 4 * student
    phases |= evaluation_memory(evaluated, spec, sampler)
    known = {name: amount for name, amount in phases.items() if amount is not None}
    worst = max(known, key=known.__getitem__)
    listed = ", ".join(f"{name} {amount / 1e9:.1f}" for name, amount in always.items())
    peaks = "; ".join(f"{name} {_gigabytes(amount)}" for name, amount in phases.items())
    unknown = " or more" if len(known) < len(phases) else ""
    total = (sum(always.values()) + known[worst]) / 1e9
    return [
        f"predicted memory of one GPU, GB: throughout {listed}; in addition {peaks}: {total:.0f}{unknown} at most "
        f"({worst.split(' (')[0]})",
        "not in this memory: scorers on the same GPU, CUDA's context of about one gigabyte, and fragmentation",
    ]


def _gigabytes(amount: float | None) -> str:
    return "not known" if amount is None else f"{amount / 1e9:.1f}"


def training_memory(size: Size, spec: Spec, sampler: Sampler) -> dict[str, float | None]:
    """Phase of an update -> peak bytes in addition to what is held throughout; None if not known."""
    method, compute = find("method", spec.method), spec.compute
    work = method.work(spec, sampler)
    passes = sampler.passes(spec.sampler.guidance)
    latents = (passes if work.guided else 1) * work.trained_at_once if work else 0
    _, prompt = size.state_bytes(compute)
    collected = stored(size, spec, work) if work else 0
    phases: dict[str, float | None] = {}
    if work and work.drawn:
        drawn = passes * min(work.drawn, compute.batch or work.drawn)
        sampling = size.sampling(drawn, compute).peak
        phases[f"rollouts ({drawn} latents at once)"] = collected + sampling + drawn * prompt
    if work and work.pictures:
        together = decoded_together(size, work.pictures_at_once)
        phases[f"decoding ({together:,} images at once)"] = collected + decoded(size, together, spec)
    if not latents:
        phases["training (activations: its largest batch is not known)"] = None
        return phases
    graph = size.training(latents, student_shape(spec), compute)
    # A teacher or the base may be evaluated while the student's graph waits for its backward pass.
    frozen = size.sampling(min(latents, passes * (compute.batch or latents)), compute).peak
    peak = max(graph.peak, graph.kept + frozen)
    states = f" and {collected / 1e9:.1f} of states, velocities and prompts" if collected > NOTABLE else ""
    name = f"training (activations of {latents} latents (estimate){states})"
    phases[name] = collected + peak + latents * prompt
    return phases


def encoding_memory(size: Size, spec: Spec, sampler: Sampler, encoders: int) -> float:
    """Bytes while prompts are encoded: text encoders back from host memory, and the update's data of earlier tasks."""
    work = find("method", spec.method).work(spec, sampler)
    if work and len(spec.tasks) > 1:
        return encoders + stored(size, spec, work)
    return encoders


def stored(size: Size, spec: Spec, work: Work) -> int:
    """Bytes of the states, velocities and prompts that an update has collected when it computes its losses."""
    latent, prompt = size.state_bytes(spec.compute)
    return work.kept * latent + work.prompts * prompt


def evaluation_memory(size: Size, spec: Spec, sampler: Sampler) -> dict[str, float]:
    """Held-out evaluation -> its peak bytes, as `training_memory`."""
    batch, compute = spec.evaluation.batch, spec.compute
    scales = (spec.evaluation.scale, *spec.evaluation.guidance_grid)
    latents = max(map(sampler.passes, scales)) * min(batch, compute.batch or batch)
    drawing = size.sampling(latents, compute).peak
    decoding = decoded(size, decoded_together(size, batch), spec)
    return {f"evaluation ({batch} images at once)": max(drawing, decoding)}


def decoded_together(size: Size, pictures: int) -> int:
    """How many of `pictures` images are decoded and held in memory at once."""
    return min(pictures, pictures_at_once(size.latent_side**2))


def decoded(size: Size, pictures: int, spec: Spec) -> float:
    """Bytes of decoding images in one call: the decoder's peak, and the images before and after scaling."""
    one = size.decoding(pictures, spec.compute)
    return (one.peak if one else 0) + 2 * pictures * size.picture_bytes
