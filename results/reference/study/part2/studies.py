"""Part 2's tuning: python results/reference/study/part2/studies.py writes its studies and, at the end, tuned.yaml.

Every line is tuned in the central cell, for both ranks and both budgets (the protocol's amendments). The studies of
joint RL and distillation are written to sweeps/part2 at once. Those of the rules for combining gradients and of the
long line start from what joint RL's have chosen, so they are written when those are in tuning/ (pack_study.sh).
"""

import json
import tarfile
from typing import Any, get_args

import yaml
from cell import BUDGET, HERE, TUNED
from central import BACKBONE, BUDGETS, SEED, TASKS, settings, taught

from bench.config.resolve import resolve
from bench.errors import exit_on_error
from bench.system.files import write_atomic
from methods.combining import RuleName

SWEEPS, TUNING = HERE.parent / "sweeps" / "part2", HERE.parent / "tuning"
RANKS = (4, 64)
SHARES = {name: float(share) for name, share in BUDGETS.items()} | {"long": 5.0}
"""Name of a budget -> its share of S; the long line has what a student and its four teachers cost."""
LR = {"low": 3.0e-4, "high": 1.0e-2, "log": True}
COMMON = {"optimizer.lr": LR, "optimizer.lr_end": {"choices": [0.1, 1.0]}, "sampler.steps": {"low": 3, "high": 10}}
PENALTY = {"low": 1.0e-4, "high": 1.0, "log": True}
# 12 groups can be shared out among 2, 4 and 6 tasks; the images per update are chosen by the size of a group.
JOINT = COMMON | {"params.nft.kl": PENALTY, "params.group_size": {"choices": [8, 4]}}
GROUPS = {"params.engine": "nft", "params.groups": 3}


def summary(name: str) -> dict[str, Any] | None:
    """What a study ended with, from its archive; None without one."""
    path = TUNING / f"{name}.tar.xz"
    if not path.is_file():
        return None
    with tarfile.open(path) as archive:
        return json.load(archive.extractfile(f"study-{name}/summary.json"))


def chosen(name: str) -> dict[str, Any] | None:
    """The settings that a study chose; None if it is not in tuning/."""
    found = summary(name)
    return None if found is None else found["chosen"]["settings"]


def first(method: str, share: str) -> dict[str, Any]:
    """The first trial: part 1's setting, with distillation's batch in proportion where it would leave few updates."""
    spec = resolve(method, ["geneval"], backbone=BACKBONE)
    found = {f"optimizer.{name}": getattr(spec.optimizer, name) for name in ("lr", "lr_end")}
    found |= {"sampler.steps": spec.sampler.steps}
    if method == "multi_reward":
        return found | {"params.nft.kl": spec.params["nft"]["kl"], "params.group_size": spec.params["group_size"]}
    return found | {"params.anchor": spec.params["anchor"], "params.trajectories": _trajectories(share)[0]}


def _trajectories(share: str) -> list[int]:
    return [48, 24, 12] if share == "full" else [24, 12]


def study(line: str, rank: int, share: str) -> dict[str, Any] | None:
    """The study of a line, as its file has it; None where joint RL's, from which it starts, is not done."""
    method = "opd_analytic" if line == "opd" else "multi_reward"
    content: dict[str, Any] = {
        "name": f"study-{named(line, rank, share)}",
        "method": method,
        "tasks": list(TASKS),
        "backbone": BACKBONE,
        "budget": round(BUDGET * SHARES[share]),
        "settings": {"lora.rank": rank, "lora.alpha": 2 * rank} | settings(),
        "sampler": "tpe", "points": 1, "trials": 10, "seeds": SEED, "confirm": {"best": 2, "seeds": SEED + 1},
    }  # fmt: skip
    if line == "opd":
        content["settings"] |= taught(share)
        space = COMMON | {"params.anchor": PENALTY, "params.trajectories": {"choices": _trajectories(share)}}
        return content | {"space": space, "enqueue": [first(method, share)]}
    content["settings"] |= GROUPS
    if line == "rule":
        start = chosen(named("joint", rank, share))
        return None if start is None else _of_rules(content, start)
    if share == "long":
        found = summary(named("joint", rank, "full"))
        return None if found is None else _of_long(content, [trial["settings"] for trial in found["confirmed"]])
    return content | {"space": JOINT, "enqueue": [first(method, share)]}


def _of_rules(content: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """Joint RL's setting with every rule, then three trials over rules and learning rates."""
    rules = [rule for rule in get_args(RuleName) if rule != "sum"]
    lr = start["optimizer.lr"]
    content["settings"] |= {name: value for name, value in start.items() if name != "optimizer.lr"}
    space = {"params.combine": {"choices": rules}, "optimizer.lr": {"low": lr / 3, "high": lr * 3, "log": True}}
    return content | {"space": space, "enqueue": [{"params.combine": rule, "optimizer.lr": lr} for rule in rules]}


def _of_long(content: dict[str, Any], best: list[dict[str, Any]]) -> dict[str, Any]:
    """Joint RL's best two settings, the best with a third of the learning rate, and the best with the other decay.

    The best of these is taken.
    """
    slow = best[0] | {"optimizer.lr": best[0]["optimizer.lr"] / 3}
    decays = COMMON["optimizer.lr_end"]["choices"]
    (other,) = (end for end in decays if end != best[0]["optimizer.lr_end"])
    space = JOINT | {"optimizer.lr": LR | {"low": LR["low"] / 3}}
    del content["confirm"]
    return content | {"space": space, "trials": 4, "enqueue": [*best, slow, best[0] | {"optimizer.lr_end": other}]}


def named(line: str, rank: int, share: str) -> str:
    """The name of a study's file and archive."""
    return f"part2-{line}-rank{rank}-{share}"


STUDIES = [(line, rank, share) for line in ("joint", "opd", "rule") for rank in RANKS for share in BUDGETS]
STUDIES += [("joint", rank, "long") for rank in RANKS]


def tuned() -> dict[int, dict[float, dict[str, Any]]] | None:
    """Rank -> budget as a share of S -> line -> chosen settings, as cell.py reads them; None before all are chosen."""
    found: dict[int, dict[float, dict[str, Any]]] = {}
    for line, rank, share in STUDIES:
        content, best = study(line, rank, share), chosen(named(line, rank, share))
        if content is None or best is None:
            return None
        # A cell has tasks and teachers of its own.
        fixed = {
            key: value for key, value in content["settings"].items() if not key.startswith(("scorers.", "teachers."))
        }
        found.setdefault(rank, {}).setdefault(SHARES[share], {})[line] = fixed | best
    return found


def written(content: dict[str, Any]) -> str:
    """The file of a study."""
    head = "# Part 2's tuning in the central cell (PROTOCOL.md, its amendments); written by part2/studies.py.\n"
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=140)


def main() -> None:
    """Write what can be written, and say what each study waits for."""
    SWEEPS.mkdir(exist_ok=True)
    for line, rank, share in STUDIES:
        name, content = named(line, rank, share), study(line, rank, share)
        state = "chosen" if chosen(name) else "to be run by tune.sh" if content else "waits for joint RL's"
        print(f"{name}: {state}")
        if content:
            write_atomic(SWEEPS / f"{name}.yaml", written(content).encode())
    if found := tuned():
        write_atomic(TUNED, yaml.safe_dump(found, sort_keys=False).encode())


if __name__ == "__main__":
    exit_on_error(main)
