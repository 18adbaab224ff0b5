"""Contact sheets: held-out prompts down, base / teacher / student across, tasks side by side, one noise a row."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from bench.api.lab import STUDENT
from bench.backbones.flow import FlowBackbone
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import explained
from bench.sampler.rollout import Sampler
from bench.scoring.loading import load_tasks
from bench.system.drawing import own_settings
from bench.system.files import write_atomic
from bench.training.evaluate import initial_noise, pictures
from bench.training.execute import load_backbone
from bench.training.teachers import locate, mount

PER_TASK = 6
PICTURE, CAPTION, HEADER = 1.1, 0.32, 0.6  # inches


def _columns(
    backbone: FlowBackbone, task, teacher: str | None, spec: Spec, sampler: Sampler, base_guidance: float
) -> tuple[list[str], dict[str, Tensor]]:
    """Prompts and, per column, their pictures."""
    split = spec.evaluation.split
    prompts = task.prompts(split)
    stride = max(1, len(prompts) // PER_TASK)
    rows = [i * stride for i in range(min(PER_TASK, len(prompts)))]
    noise = torch.cat([initial_noise(backbone, task.name, split, range(i, i + 1)) for i in rows])
    chosen = [prompts[i] for i in rows]
    guidance = spec.evaluation.scale
    draw = lambda adapter, scale: pictures(backbone, chosen, noise, adapter, sampler, scale)  # noqa: E731
    columns = {"base": draw(None, base_guidance)}
    if teacher:
        columns["teacher"] = draw(teacher, spec.teacher_guidance[task.name])
    columns["student"] = draw(STUDENT, guidance)
    return [p.text for p in chosen], columns


def try_contact_sheet(spec: Spec, root: Path, summary: dict, say: Callable[[str], None]) -> Path | None:
    """`contact_sheet`; where it cannot be made, None, and a line that says why: the run has its result without it."""
    try:
        return contact_sheet(spec, root, summary)
    except Exception as error:  # whatever it is, a picture is worth no finished run
        say(f"no contact sheet: {explained(error)}")
        return None


def contact_sheet(spec: Spec, root: Path, summary: dict) -> Path:
    """Draw the sheet of a finished run from its adapters; returns its path. Made once, then reused."""
    path = root / summary["folder"] / "sheet.png"
    if path.exists():
        return path
    descriptor = describe(spec.backbone)
    backbone = load_backbone(spec.backbone, spec.device, spec.compute, root / "cache")
    backbone.adapters.load(STUDENT, root / summary["folder"] / "adapter")
    teachers = mount(locate(spec, descriptor, root, descriptor.fingerprint()), backbone)
    sampler = spec.evaluation.build(descriptor.shift)
    groups = []
    for name, task in load_tasks(spec.tasks, descriptor.world, spec.scorers, spec.device).items():
        base_guidance = (descriptor.base_guidance or {}).get(name, spec.evaluation.scale)
        groups.append((name, *_columns(backbone, task, teachers.get(name), spec, sampler, base_guidance)))
    _paint(groups, path)
    return path


def _paint(groups: list[tuple[str, list[str], dict[str, Tensor]]], path: Path) -> None:
    """Tasks side by side; in each, a caption above its row of pictures."""
    with own_settings():
        write_atomic(path, _painted(groups))


def _painted(groups: list[tuple[str, list[str], dict[str, Tensor]]]) -> bytes:
    """A PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(len(prompts) for _, prompts, _ in groups)
    width, height = PICTURE * max(len(drawn) for *_, drawn in groups) + 0.2, (PICTURE + CAPTION) * rows + HEADER
    figure = Figure(figsize=(width * len(groups), height), dpi=100)
    FigureCanvasAgg(figure)
    for part, (task, prompts, drawn) in zip(figure.subfigures(1, len(groups), squeeze=False)[0], groups, strict=True):
        axes = part.subplots(rows, len(drawn), squeeze=False)
        part.subplots_adjust(0.03, 0.01, 0.97, 1 - HEADER / height, wspace=0.05, hspace=CAPTION / PICTURE)
        part.suptitle(task, fontsize=10, y=1 - 0.02 / height, va="top")
        for axis in axes.flat:
            axis.set_axis_off()
        for j, (column, images) in enumerate(drawn.items()):
            part.text((j + 0.5) / len(drawn), 1 - 0.25 / height, column, fontsize=9, ha="center", va="top")
            for i, image in enumerate(images):
                axes[i][j].imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
                axes[i][j].set(xticks=[], yticks=[])
                axes[i][j].set_axis_on()
        for i, prompt in enumerate(prompts):
            axes[i][0].set_title(_wrap(prompt), loc="left", fontsize=7, pad=2, parse_math=False)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _wrap(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 58, max_lines=2))
