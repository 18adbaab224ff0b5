"""Contact sheets: one block of images per task, with prompts as rows and base, teacher and student as columns.

All images of a row start from the same noise.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from bench.api.lab import STUDENT
from bench.backbones.flow import FlowBackbone
from bench.backbones.sharding import is_split
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import UsageError, explained
from bench.sampler.rollout import Sampler
from bench.scoring.loading import load_tasks
from bench.store.names import weights_folder
from bench.system.drawing import own_settings
from bench.system.files import write_atomic
from bench.training.evaluate import initial_noise, pictures
from bench.training.execute import load_backbone
from bench.training.measures import Entry
from bench.training.teachers import locate, mount

Block = tuple[str, list[str], dict[str, Tensor]]
"""A task, its prompts, and column -> images [N, 3, H, W]."""
PER_TASK = 6
"""Prompts per task, spread evenly over the split."""
PICTURE, CAPTION, HEADER = 1.1, 0.32, 0.6
"""Side of an image, height of a caption and height of a block's header, in inches."""


def _columns(
    backbone: FlowBackbone, task, teacher: str | None, spec: Spec, sampler: Sampler, scales: dict[str, float]
) -> tuple[list[str], dict[str, Tensor]]:
    """The chosen prompts and, per column, their images [N, 3, H, W], at the column's guidance scale."""
    split = spec.evaluation.split
    prompts = task.prompts(split)
    stride = max(1, len(prompts) // PER_TASK)
    rows = [i * stride for i in range(min(PER_TASK, len(prompts)))]
    # Noise depends on the row's index in the split, so these are the images of the held-out evaluation.
    noises = [initial_noise(backbone, task.name, split, [Entry(i)]) for i in rows]
    noise = torch.cat(noises)

    chosen = [prompts[i] for i in rows]

    def draw(adapter: str | None, scale: float) -> Tensor:
        return pictures(backbone, chosen, noise, adapter, sampler, scale)

    columns = {"base": draw(None, scales["base"])}
    if teacher:
        columns["teacher"] = draw(teacher, scales["teacher"])
    columns["student"] = draw(STUDENT, scales["student"])
    return [p.text for p in chosen], columns


def try_contact_sheet(spec: Spec, root: Path, summary: dict, say: Callable[[str], None]) -> Path | None:
    """Draw the sheet as `contact_sheet` does; on any error say why and return None."""
    try:
        return contact_sheet(spec, root, summary)
    except Exception as error:  # a missing sheet must not make a finished run fail
        say(f"no contact sheet: {explained(error)}")
        return None


def contact_sheet(spec: Spec, root: Path, summary: dict) -> Path:
    """Draw the sheet of a finished run from its adapters and return its path; an existing sheet is kept."""
    path = root / summary["folder"] / "sheet.png"
    if path.exists():
        return path
    if is_split(spec.compute):
        raise UsageError("the weights are split over processes; the same command in a single process draws the sheet")
    descriptor = describe(spec.backbone)
    backbone = load_backbone(spec.backbone, spec.device, spec.compute, root / "cache")
    backbone.adapters.load(STUDENT, weights_folder(root / summary["folder"], spec.full_finetuning))
    teachers = mount(locate(spec, descriptor, root, descriptor.fingerprint()), backbone)
    sampler = descriptor.evaluation_sampler(spec)
    groups: list[Block] = []
    tasks = load_tasks(spec.tasks, descriptor.world, spec.scorers, spec.device)
    chosen = summary.get("guidance", {})  # there with evaluation.guidance_grid
    for name, task in tasks.items():
        scales = {
            model.partition(" ")[0]: chosen.get(model, {}).get(name, descriptor.usual_guidance(model, name, spec))
            for model in ("base", f"teacher {name}", "student")
        }
        with backbone.at(spec.evaluation.resolution):
            texts, columns = _columns(backbone, task, teachers.get(name), spec, sampler, scales)
        groups.append((name, texts, columns))
    _paint(groups, path)
    return path


def _paint(groups: list[Block], path: Path) -> None:
    """Write the sheet to `path`."""
    # matplotlib's defaults, whatever the user's matplotlibrc says.
    with own_settings():
        write_atomic(path, _painted(groups))


def _painted(groups: list[Block]) -> bytes:
    """The sheet as PNG: tasks side by side, and in each a caption above every row of images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(len(prompts) for _, prompts, _ in groups)
    columns = max(len(drawn) for *_, drawn in groups)
    width = PICTURE * columns + 0.2
    height = (PICTURE + CAPTION) * rows + HEADER
    figure = Figure(figsize=(width * len(groups), height), dpi=100)
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1, len(groups), squeeze=False)[0]
    for part, (task, prompts, drawn) in zip(parts, groups, strict=True):
        axes = part.subplots(rows, len(drawn), squeeze=False)
        part.subplots_adjust(0.03, 0.01, 0.97, 1 - HEADER / height, wspace=0.05, hspace=CAPTION / PICTURE)
        part.suptitle(task, fontsize=10, y=1 - 0.02 / height, va="top")
        for axis in axes.flat:
            axis.set_axis_off()
        for j, (column, images) in enumerate(drawn.items()):
            x, y = (j + 0.5) / len(drawn), 1 - 0.25 / height
            part.text(x, y, column, fontsize=9, ha="center", va="top")
            for i, image in enumerate(images):
                pixels = image.permute(1, 2, 0).cpu().numpy()
                axes[i][j].imshow(pixels, interpolation="nearest")
                axes[i][j].set(xticks=[], yticks=[])
                axes[i][j].set_axis_on()
        for i, prompt in enumerate(prompts):
            # A prompt may contain dollar signs, which are not mathematics.
            axes[i][0].set_title(_wrap(prompt), loc="left", fontsize=7, pad=2, parse_math=False)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _wrap(text: str) -> str:
    """At most two lines of a prompt."""
    import textwrap

    return "\n".join(textwrap.wrap(text, 58, max_lines=2))
