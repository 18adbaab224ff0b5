"""Run folders with known answers, written as the store writes them."""

import json
from pathlib import Path

import numpy as np

TASKS = ("geneval", "ocr")
STRATA = {"geneval": ["a"] * 6 + ["b"] * 4, "ocr": [""] * 8}
HEADLINES = {"geneval": "official", "ocr": "exact"}
TITLES = {"opd_analytic": "Analytic OPD", "multi_reward": "Joint RL", "sft": "SFT on teachers' samples"}
"""Readable names of lines whose runs have no settings of their own."""


def row(task: str, values: np.ndarray, gold: np.ndarray | None = None) -> dict:
    rows = {HEADLINES[task]: values.tolist(), "reward": (values / 2).tolist()}
    rows |= {"gold": gold.tolist()} if gold is not None else {}
    rows |= {"strict": np.minimum(values, np.roll(values, 1)).tolist()} if task == "geneval" else {}
    rows |= measures(task, values)
    prompts = [i // 2 for i in range(len(values))]  # two pictures of each
    return {"task": task, "headline": HEADLINES[task], "strata": STRATA[task], "rows": rows, "prompts": prompts}


def measures(task: str, values: np.ndarray) -> dict[str, list]:
    """Diversity, drift and entropies, of some images or all, as evaluations have them."""
    near = np.round(1.5 - np.roll(values, 2) / 3 + np.arange(len(values)) / 1e3, 5)
    few = [value if i % max(2, len(values) // 16) == 0 else None for i, value in enumerate(near.tolist())]
    found = {"drift": few, "diversity@space": few, "diversity over prompts@space": near.tolist()}
    found |= {"entropy.ground": np.roll(near, 1).tolist(), "entropy.placement": np.roll(near, 3).tolist()}
    # The captions of one stratum decide the colour.
    return found | ({"entropy.colour": [None if s == "b" else 1.5 for s in STRATA[task]]} if task == "geneval" else {})


def make_run(
    root: Path,
    method: str = "opd_analytic",
    seed: int = 0,
    level: float = 0.5,
    budget: int = 1000,
    teachers: bool = True,
    settings: dict | None = None,
    state: str = "done",
    points: tuple[float, ...] = (0.5, 1.0),
    name: str = "",
    prompt: str = "",
    pictures: bool = False,
) -> Path:
    """One run whose scores lie around `level`; returns its folder."""
    params = {"order": None} | (settings or {})
    folder = root / (name or f"{method}-{abs(hash((method, str(params), budget))) % 16**8:08x}-s{seed}")
    folder.mkdir(parents=True)
    spec = {
        "method": method, "backbone": "micro", "tasks": list(TASKS), "seed": seed,
        "budget": {"updates": None, "evaluations": budget, "seconds": None},
        "sampler": {"kernel": "ode", "eta": 0.0, "steps": 5}, "optimizer": {"lr": 1e-3}, "lora": {"rank": 4}, "ema": {},
        "evaluation": {"steps": 10, "guidance": 1.0, "split": "test", "points": list(points)}, "params": params,
        "note": prompt,
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps({"spec": spec, "backbone_hash": "f"}))
    (folder / "provenance.jsonl").write_text(json.dumps({"commit": "c0ffee", "device": "a CPU"}) + "\n")
    if state == "failed":
        (folder / "failure.json").write_text(json.dumps({"error": f"it broke {prompt}"}))
    if state != "done":
        return folder
    rng = np.random.default_rng([seed, sum(map(ord, method)), int(level * 1000), len(str(params))])
    draw = lambda task, at: (rng.random(len(STRATA[task])) < at).astype(float)
    base_rng = np.random.default_rng(7)
    base = {task: (base_rng.random(len(STRATA[task])) < 0.2).astype(float) for task in TASKS}
    top = {task: (base_rng.random(len(STRATA[task])) < 0.9).astype(float) for task in TASKS}
    final = {task: draw(task, level) for task in TASKS}
    models = {"student": {t: row(t, final[t]) for t in TASKS}, "base": {t: row(t, base[t]) for t in TASKS}}
    if teachers:
        models |= {f"teacher {t}": {u: row(u, top[u] if u == t else base[u]) for u in TASKS} for t in TASKS}
    summary = {
        "method": method, "seed": seed, "folder": folder.name, "split": "test", "updates": 10, "models": models,
        "cost": {"evaluations": {"training": budget}, "seconds": {"training": 8.0, "scoring": 2.0, "idle": 1.0}},
        "teachers": {t: {"source": "shipped", "hash": "h", "evaluations": 500.0} for t in TASKS} if teachers else {},
    }  # fmt: skip
    if pictures:
        summary["pictures"] = {
            model: {task: f"{folder.name if model == 'student' else 'cache'}/{model}/{task}" for task in TASKS}
            for model in models
        }
        for model, places in summary["pictures"].items():
            for task, place in places.items():
                paint(root / place, task, prompt, sum(map(ord, method + model)))
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "evaluations.jsonl").open("w") as file:
        for share in points:
            for task in TASKS:
                values = final[task] if share == points[-1] else draw(task, level * 0.8)
                gold = draw(task, level) if task == "ocr" else None
                file.write(json.dumps({"step": int(10 * share), "share": share} | row(task, values, gold)) + "\n")
    return folder


def paint(folder: Path, task: str, prompt: str, seed: int) -> None:
    """Noise for every prompt of a task; large pictures for one of the tasks."""
    import torch

    from bench.api.task import Prompt
    from bench.scoring.folders import places, write

    count, side = len(STRATA[task]), 8 if task == "geneval" else 300
    prompts = [Prompt(f"{task} {i} {prompt}", "", {}) for i in range(count)]
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    write(folder, prompts, images, places(prompts))


def make_probes(folder: Path, name: str = "") -> list[Path]:
    """Outputs of bench probe and of methods.opd_ppo_excess; returns their paths."""
    noise = lambda at: {"snr": [at, at - 0.1, at + 0.1], "trace": 3.25}
    probes = [
        {"label": f"{method}{name}", "method": method, "point": [], "backbone": "micro", "student": "base",
         "sampler": {"kernel": "cps", "eta": 0.7}, "params": {"weighting": "kl", "advantage": "log_ratio"}, "states": 8,
         "all": noise(at), "by_sigma": [{"sigma": sigma} | noise(at * sigma) for sigma in (1.0, 0.5)],
         "mean_over_first": [at, at - 0.25, at + 0.25], "interference": {"a | b": {"all": at / 2}}}
        for method, at in (("opd_analytic", 0.75), ("opd_ppo", 0.125))
    ]  # fmt: skip
    level = {"sigma": 0.875, "measured": 4.5, "predicted": 4.25, "ratio": [1.0625, 0.9375, 1.1875], "snr": 0.5}
    excess = [
        {"task": "ocr", "kernel": "cps", "eta": 0.7, "student": "base", "states": 8, "draws": 4, "by_sigma": [level],
         "ratio": [1.03125, 0.984375, 1.078125]}
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "noise.json", folder / "excess.json"]
    for path, content in zip(paths, (probes, excess)):
        path.write_text(json.dumps(content))
    return paths


def make_study(root: Path, name: str = "front", objectives: tuple[str, ...] = TASKS) -> Path:
    """A finished study's folder."""
    complete = [
        {"trial": k, "values": [0.25 + 0.0625 * k, 0.875 - 0.03125 * k][: len(objectives)],
         "settings": {"optimizer.lr": 10.0**-k, "params.size": ["small", "large"][k % 2], "params.flag": k > 1}}
        for k in range(4)
    ]  # fmt: skip
    summary = {
        "study": name, "objectives": list(objectives), "split": "validation", "budget": 500, "seeds": [0],
        "trials": {"complete": 4, "pruned": 1}, "complete": complete, "best": complete[2:], "first": complete[0],
        "settings": {"optimizer.lr": "range", "params.size": "choices", "params.flag": "choices"},
        "importances": {"optimizer.lr": 0.65625, "params.size": 0.34375}, "command": "bench run --method opd_analytic",
    }  # fmt: skip
    folder = root / "a-study"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "journal.log").write_text("")
    return folder
