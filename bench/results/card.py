"""A model card for a run's student: what it is, what it was trained on, its scores, and how to load it."""

import json
from typing import Any

from bench import __version__
from bench.analysis.metric_names import STRICTER, is_measure
from bench.analysis.names import readable
from bench.backbones.pipeline_files import NETWORK_CONFIG
from bench.config.families import is_address
from bench.results.result import Result
from bench.system.files import read_record
from bench.terminal import legible
from bench.weights.hub import PREFIX


def card(run: Result, merged: bool) -> str:
    """The card in Markdown, with the hub's metadata in front; `merged` is whether the whole pipeline is exported."""
    spec, summary = run.spec, run.summary
    assert summary is not None  # only finished runs are exported
    whole = merged or bool(spec.get("full_finetuning"))
    base = _base(spec["backbone"])
    metadata = ["---", "library_name: diffusers", "pipeline_tag: text-to-image", "tags:"]
    metadata += [f"- {tag}" for tag in ("text-to-image", *(() if whole else ("lora",)), "multireward-bench")]
    if spec["backbone"].startswith(PREFIX):
        metadata.append(f"base_model: {json.dumps(base)}")
    commit = (run.starts[-1].get("commit") or "")[:10] if run.starts else ""
    made = f"multireward-bench {__version__}" + (f", commit {commit}" if commit else "")
    lines = [
        *metadata,
        "---",
        "",
        f"# {readable(spec['method'], {})} on {', '.join(spec['tasks'])}",
        "",
        f"{'A model' if whole else 'A LoRA adapter'} for {base}, trained by `{spec['method']}` on the tasks "
        f"{', '.join(spec['tasks'])} with seed {spec['seed']} ({made}).",
        "",
        f"- Updates: {summary['updates']:,}",
        f"- Training NFE (a forward pass of one image counts 1): "
        f"{summary['cost']['evaluations'].get('training', 0):,.0f}",
    ]
    for task, teacher in summary["teachers"].items():
        source = str(teacher.get("source") or "unknown")
        lines.append(f"- Teacher for {task}: {source.rpartition('/')[2]}")
    lines += ["", "## Scores", "", *_scores(run), ""]
    if remarks := summary.get("remarks"):
        lines += ["## Remarks", "", *(f"- {_line(remark)}" for remark in remarks), ""]
    language = "python" if is_address(spec["backbone"]) else "bash"
    return "\n".join([*lines, "## Use", "", f"```{language}", *_use(run, base, merged), "```", ""])


def _line(text: str) -> str:
    """A text from the records as one line of Markdown, in which a browser reads no tag."""
    return " ".join(legible(text).split()).replace("&", "&amp;").replace("<", "&lt;")


def _base(backbone: str) -> str:
    """The backbone's name for other people: a hub id, or the last part of a local path."""
    if backbone.startswith(PREFIX) or not is_address(backbone):
        return backbone.removeprefix(PREFIX)
    return backbone.rstrip("/").rpartition("/")[2]


def _scores(run: Result) -> list[str]:
    """A table of the headline metrics and those beside them, with 95% intervals over prompts."""
    spec = run.spec["evaluation"]
    frame = run.scores
    shown = frame[frame["headline"] | frame["metric"].isin(STRICTER) | frame["metric"].map(is_measure)]
    models = list(dict.fromkeys(shown["model"]))
    guided = f"guidance scale {spec['guidance']:g}; the base at its best guidance scale"
    if grid := spec.get("guidance_grid"):
        scales = ", ".join(f"{scale:g}" for scale in grid)
        chosen = (run.summary or {}).get("guidance", {}).get("student", {})
        own = ", ".join(f"{task} {scale:g}" for task, scale in chosen.items())
        guided = f"every model and task at its best guidance scale of {scales} on validation prompts (student: {own})"
    lines = [
        f"Means over {spec['split']} prompts with 95% intervals, {spec['steps']} sampling steps, {guided}.",
        "",
        f"| task | metric | {' | '.join(models)} |",
        f"|---|---|{'---|' * len(models)}",
    ]
    for (task, metric), rows in shown.groupby(["task", "metric"], sort=False):
        cells = {row["model"]: _cell(row) for row in rows.to_dict("records")}
        lines.append(f"| {task} | {metric} | {' | '.join(cells.get(model, '') for model in models)} |")
    return lines


def _cell(row: dict[Any, Any]) -> str:
    ends = "" if row["low"] != row["low"] else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{ends}"


def _use(run: Result, base: str, merged: bool) -> list[str]:
    """Lines of Python that load what is exported."""
    if not is_address(run.spec["backbone"]):
        return [f'bench sample "a red circle" --backbone {base} --adapter "THIS FOLDER" --output drawn']
    draw = 'pipeline("a red circle").images[0]'
    if merged:
        return [
            "from diffusers import DiffusionPipeline",
            "",
            'pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER")',
            draw,
        ]
    start = f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(base)})"
    if not run.spec.get("full_finetuning"):
        return [
            "from diffusers import DiffusionPipeline",
            "",
            start,
            'pipeline.load_lora_weights("THIS FOLDER")',
            draw,
        ]
    name = read_record(run.weights / NETWORK_CONFIG)["_class_name"]
    part = "unet" if "UNet" in name else "transformer"
    return [
        f"from diffusers import DiffusionPipeline, {name}",
        "",
        start,
        f'pipeline.register_modules({part}={name}.from_pretrained("THIS FOLDER"))',
        draw,
    ]
