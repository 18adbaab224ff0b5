"""Run folders with known answers, written as the store writes them."""

import json
from pathlib import Path

import numpy as np

TASKS = ("geneval", "ocr")
STRATA = {"geneval": ["a"] * 6 + ["b"] * 4, "ocr": [""] * 8}
HEADLINES = {"geneval": "official", "ocr": "exact"}


def row(task: str, values: np.ndarray, gold: np.ndarray | None = None) -> dict:
    rows = {HEADLINES[task]: values.tolist(), "reward": (values / 2).tolist()}
    if gold is not None:
        rows["gold"] = gold.tolist()
    return {"task": task, "headline": HEADLINES[task], "strata": STRATA[task], "rows": rows}


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
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "evaluations.jsonl").open("w") as file:
        for share in points:
            for task in TASKS:
                values = final[task] if share == points[-1] else draw(task, level * 0.8)
                gold = draw(task, level) if task == "ocr" else None
                file.write(json.dumps({"step": int(10 * share), "share": share} | row(task, values, gold)) + "\n")
    return folder
