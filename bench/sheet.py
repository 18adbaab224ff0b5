"""Contact sheets: held-out prompts down, base / teacher / student across, the same noise in a row."""

from pathlib import Path

import torch
from torch import Tensor

from bench.backbones.flow import FlowBackbone
from bench.evaluate import euler, initial_noise, pictures
from bench.lab import STUDENT
from bench.runner import load_backbone, load_tasks
from bench.sampler.rollout import Sampler
from bench.spec import Spec, describe
from bench.teachers import locate, mount

PER_TASK = 6


def _columns(
    backbone: FlowBackbone, task, teacher: str | None, spec: Spec, sampler: Sampler, base_guidance: float
) -> tuple[list[str], dict[str, Tensor]]:
    """Prompts and, per column, their pictures."""
    prompts = task.prompts("test")
    stride = max(1, len(prompts) // PER_TASK)
    rows = [i * stride for i in range(min(PER_TASK, len(prompts)))]
    noise = torch.cat([initial_noise(backbone, task.name, "test", range(i, i + 1)) for i in rows])
    chosen = [prompts[i] for i in rows]
    guidance = spec.evaluation.guidance
    draw = lambda adapter, scale: pictures(backbone, chosen, noise, adapter, sampler, scale)  # noqa: E731
    columns = {"base": draw(None, base_guidance)}
    if teacher:
        columns["teacher"] = draw(teacher, spec.teacher_guidance[task.name])
    columns["student"] = draw(STUDENT, guidance)
    return [p.text for p in chosen], columns


def contact_sheet(spec: Spec, root: Path, summary: dict) -> Path:
    """Draw the sheet of a finished run from its adapters; returns its path. Made once, then reused."""
    path = root / summary["folder"] / "sheet.png"
    if path.exists():
        return path
    descriptor = describe(spec.backbone)
    backbone = load_backbone(spec.backbone, spec.device)
    backbone.adapters.load(STUDENT, root / summary["folder"] / "adapter")
    teachers = mount(locate(spec, descriptor, root, descriptor.fingerprint()), backbone)
    sampler = euler(spec.evaluation.steps, descriptor.shift)
    groups = []
    for name, task in load_tasks(spec.tasks, descriptor.world).items():
        base_guidance = (descriptor.base_guidance or {}).get(name, spec.evaluation.guidance)
        groups.append((name, *_columns(backbone, task, teachers.get(name), spec, sampler, base_guidance)))
    _paint(groups, path)
    return path


def _paint(groups: list[tuple[str, list[str], dict[str, Tensor]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sum(len(prompts) for _, prompts, _ in groups)
    columns = list(groups[0][2])
    figure = Figure(figsize=(2.8 + 1.1 * len(columns), 1.1 * rows + 0.4), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    row = 0
    for task, prompts, drawn in groups:
        for i, prompt in enumerate(prompts):
            for j, column in enumerate(columns):
                axis = axes[row][j]
                axis.imshow(drawn[column][i].permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if row == 0:
                    axis.set_title(column, fontsize=9)
            text = f"{task}\n{_wrap(prompt)}"
            axes[row][0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=7, parse_math=False)
            row += 1
    figure.subplots_adjust(
        left=2.6 / figure.get_figwidth(), right=0.99, top=1 - 0.35 / figure.get_figheight(), bottom=0.01
    )
    temporary = path.with_name(".sheet.tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)


def _wrap(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 28))
