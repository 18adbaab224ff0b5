"""The one training loop: gradients task by task, one optimiser step a plan, EMA, budget, checkpoints, evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.analysis.records import score
from bench.api.lab import EMA, STUDENT, Lab
from bench.api.method import Method
from bench.backbones.adapters import Shape
from bench.config.spec import LoraSpec
from bench.errors import BenchError, Interrupted, UsageError
from bench.hashing import seed_of
from bench.probes.estimates import ProbeLab
from bench.probes.interference import interference
from bench.scoring.folders import PICTURES
from bench.store.run import Run
from bench.training.ema import averages_at, decay_at
from bench.training.evaluate import Evaluation, evaluate
from bench.training.gradients import give, take
from bench.training.out_of_memory import memory
from bench.training.sharing import Watch, check_equal
from bench.training.start import layer_of, read_start, targets_of


@dataclass
class Progress:
    """What a listener is told after every update and every evaluation."""

    step: int
    fraction: float
    scores: dict[str, float] | None = None
    """After an evaluation instead: task -> held-out score."""


class Loop:
    """Trains one student. Everything that changes during training is in the adapters, the optimiser and `step`."""

    def __init__(self, run: Run, lab: Lab, method: Method, shift: float):
        self.run, self.lab, self.method, self.spec = run, lab, method, run.spec
        self.workers = lab.workers
        self.step = 0
        self.last_share = 0.0
        self.evaluated: list[float] = []
        self.saved = (0, 0)
        """Step and evaluated points of the last checkpoint."""
        self.stop_requested: Callable[[], bool] = lambda: False
        """Asked once an update, and before each batch of an evaluation."""
        backbone, spec = lab.backbone, run.spec
        self.evaluation_sampler = spec.evaluation.build(shift)
        shape = Shape(spec.lora.rank, spec.lora.alpha, spec.lora.targets)
        init = seed_of(spec.seed, "adapter") % 2**31
        backbone.adapters.add(STUDENT, shape, init, trainable=True)
        for name in (EMA, *method.adapters):
            backbone.adapters.add(name, shape, init)
        self.parameters = backbone.adapters.parameters(STUDENT)
        o = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay
        )
        self.scaler = torch.amp.GradScaler(backbone.device.type, enabled=spec.compute.precision == "float16")

    @property
    def fraction(self) -> float:
        """Progress through the budget in [0, 1]; 1 at once for a method that does not train."""
        if not self.method.trains:
            return 1.0
        budget, meter = self.spec.budget, self.lab.backbone.meter
        if budget.updates:
            return min(1.0, self.step / budget.updates)
        spent = meter.whole(self.workers)
        if budget.nfe:
            return min(1.0, spent["evaluations"].get("training", 0) / budget.nfe)
        return min(1.0, sum(spent["seconds"].get(clock, 0) for clock in ("training", "scoring")) / budget.seconds)

    def train(self, listen: Callable[[Progress], None] = lambda _: None) -> None:
        """Run, or go on, to the end of the budget. Raises BenchError on a loss or gradient that is not finite."""
        restored = self.run.restore()
        if restored:
            self._load(*restored)
        else:
            self._prepare()
        points = sorted({p for p in self.spec.evaluation.points if 0 < p < 1} | {1.0})
        while True:
            fraction = self.fraction
            reached = [p for p in points if p <= fraction and p not in self.evaluated]
            if self.step and (reached or self.step % self.spec.checkpoint_every == 0):
                self._save()  # before the evaluation too: it may fail where training did not
            if reached:
                scores = self._evaluate(reached)
                self._save()
                listen(Progress(self.step, fraction, scores))
            self._stop_if_asked()
            if fraction >= 1:
                return
            with memory("training", self.spec):
                row = self._update(fraction)
            self.run.append("metrics.jsonl", row)
            listen(Progress(self.step, self.fraction))

    def _stop_if_asked(self) -> None:
        """Raises Interrupted, with everything saved, once somebody has asked one of the processes to stop."""
        if any(self.workers.gather(self.stop_requested())):
            if self.step:
                self._save()
            raise Interrupted(f"stopped after update {self.step}: the same command goes on from there")

    @torch.no_grad()
    def _prepare(self) -> None:
        """Let the method set the student up; a method that does not train is evaluated here."""
        if self.spec.lora.start:
            self._start(self.spec.lora)
        watch = Watch(self.lab, self.method.name)
        self.method.prepare(self.lab)
        watch.check_draws()
        check_equal(self.lab, self.method.name, "before the first update")
        if self.lab.notes:
            self.run.append("metrics.jsonl", {"step": 0} | self.lab.notes | self.lab.backbone.meter.whole(self.workers))
        adapters = self.lab.backbone.adapters
        for name in self._kept():
            torch._foreach_copy_(tuple(adapters.parameters(name)), tuple(self.parameters))
        if not self.method.trains:
            self._evaluate([1.0])

    def _start(self, lora: LoraSpec) -> None:
        assert lora.start  # called where one is set
        adapters = self.lab.backbone.adapters
        state = read_start(lora, adapters.targets)
        if left := sorted(adapters.state(STUDENT).keys() - state.keys()):
            raise UsageError(f"the adapter {lora.start} leaves {layer_of(left[0])} as it is: {targets_of(state)}")
        adapters.load_state(STUDENT, state, lora.start)

    def _update(self, fraction: float) -> dict:
        """Collect from every task of the plan, then take the method's optimiser steps; returns the metrics row."""
        lab, spec, meter = self.lab, self.spec, self.lab.backbone.meter
        lab.step, lab.progress, lab.last_progress, lab.notes = self.step, fraction, self.last_share, {}
        row: dict[str, float] = {}
        decayed = 1 - (1 - spec.optimizer.lr_end) * fraction
        for group in self.optimizer.param_groups:
            group["lr"] = spec.optimizer.lr * decayed
        with meter.purpose("training"):
            plan = self.method.plan(lab)
            watch = Watch(lab, self.method.name)
            with torch.no_grad():
                experiences = self.method.mix(lab, {task: self.method.collect(lab, task) for task in plan})
            watch.check(plan)
            for lab.inner in range(self.method.inner_updates):
                row |= self._backward(plan, experiences)
                watch.check(plan)
                norm = self._descend()
                self._average()
                if norm is None:
                    lab.note("skipped_steps", lab.notes.get("skipped_steps", 0.0) + 1)
                else:
                    row["grad_norm"] = norm
            with torch.no_grad():
                self.method.after_update(lab)
                watch.check_draws()
                self.step += 1
        self.last_share = fraction
        rate = {"lr": spec.optimizer.lr * decayed}
        return {"step": self.step} | self._pooled(row) | rate | self._pooled(lab.notes) | meter.whole(self.workers)

    def _pooled(self, numbers: dict[str, float]) -> dict[str, float]:
        """Means over the processes, each weighted by its share of the prompts of the task that a number is about."""
        if self.workers.count == 1:
            return numbers
        even = 1 / self.workers.count
        weight = {name: self.lab.shard_fraction(task) if (task := name.partition("/")[2]) else even for name in numbers}
        shares = self.workers.gather({name: weight[name] * value for name, value in numbers.items()})
        return {name: sum(share[name] for share in shares) for name in numbers}

    def _backward(self, plan: dict[str, float], experiences: dict[str, object]) -> dict[str, float]:
        """Gradients of all tasks, summed over the processes, in the parameters; returns the losses."""
        losses, apart = {}, {}
        combines = self.method.combines()
        for task, weight in plan.items():
            losses[f"loss/{task}"] = self._add_gradient(task, 1.0 if combines else weight, experiences[task])
            if combines:
                apart[task] = take(self.parameters)
        if combines:
            self._combine(apart, plan)
        elif self.workers.count > 1:
            for parameter in self.parameters:
                if parameter.grad is None:  # nothing of this step was this process's
                    parameter.grad = torch.zeros_like(parameter)
            self.workers.add(p.grad for p in self.parameters)
        return losses

    def _add_gradient(self, task: str, weight: float, experience: object) -> float:
        """Add a task's weighted gradient; returns its loss."""
        total = 0.0
        for piece in self.method.losses(self.lab, task, experience):
            value = float(piece.detach())
            if not math.isfinite(value):
                raise self._diverged(f"the loss of task {task!r} is {value}")
            total += value
            self.scaler.scale(weight * self.lab.shard_fraction(task) * piece).backward()
        return total

    @torch.no_grad()
    def _combine(self, gradients: dict[str, Tensor], plan: dict[str, float]) -> None:
        """Let the method make one gradient of the tasks'; one that is not finite is left for `_descend` to find."""
        self.workers.add(gradients.values())
        scale = self.scaler.get_scale()  # a power of two: dividing and multiplying by it changes no bit
        own = {task: gradient / scale for task, gradient in gradients.items()}
        broken = next((gradient for gradient in own.values() if not gradient.isfinite().all()), None)
        give(self.parameters, scale * (self.method.combine(self.lab, own, plan) if broken is None else broken))

    def _descend(self) -> float | None:
        """Clip, step, clear; returns the gradient's norm before clipping.

        None: it overflowed float16, the step was left out and the loss scale lowered.
        """
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.optimizer.clip))
        overflowed = not math.isfinite(norm)
        if overflowed and self.scaler.get_scale() <= 1:  # a disabled scaler's is 1
            raise self._diverged(f"the gradient norm is {norm}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return None if overflowed else norm

    @torch.no_grad()
    def _average(self) -> None:
        """Average the weights, if it is time, after the optimiser step that was just taken."""
        taken = self.step * self.method.inner_updates + self.lab.inner
        if averages_at(taken, self.spec.ema.every):
            decay = decay_at(taken, self.spec.ema.decay)
            averages = self.lab.backbone.adapters.parameters(EMA)
            torch._foreach_lerp_(tuple(averages), tuple(self.parameters), 1 - decay)

    def _diverged(self, cause: str) -> BenchError:
        if not self.run.checkpoint.exists():
            kept = "there is no checkpoint yet"
        else:
            kept = f"the last good checkpoint is {self.run.checkpoint}"
        return BenchError(f"update {self.step + 1}: {cause}; {kept}")

    def _evaluate(self, points: list[float]) -> dict[str, float]:
        """Evaluate every task, and probe if asked; returns the held-out scores."""
        scores = {}
        with self.lab.backbone.meter.purpose("evaluation"):
            for task in self.spec.tasks:
                keep = self.spec.evaluation.pictures and points[-1] == 1
                result = self.evaluate(EMA, task, folder=self.run.folder / PICTURES / task if keep else None)
                record = result.record()
                self.run.append("evaluations.jsonl", {"step": self.step, "share": points[-1]} | record)
                scores[task] = score(record)
        if self.spec.probes.interference and len(self.spec.tasks) > 1 and self.method.trains:
            with self.lab.backbone.meter.purpose("probes"):
                lab = ProbeLab.of(self.lab)
                cosines = interference(self.method, lab, self.spec.tasks, self.spec.probes.interference)
            self.run.append("probes.jsonl", {"step": self.step, "share": points[-1], "interference": cosines})
        self.evaluated += points
        return scores

    def evaluate(
        self, adapter: str | None, task: str, guidance: float | None = None, folder: Path | None = None
    ) -> Evaluation:
        """Score an adapter on the run's held-out split with its evaluation sampler; pictures go to `folder`.

        Raises BenchError if a picture could not be scored: comparisons are paired by prompt.
        """
        o = self.spec.evaluation
        scale = o.scale if guidance is None else guidance
        lab, sampler = self.lab, self.evaluation_sampler
        with memory("evaluation", self.spec):
            found = evaluate(
                lab.backbone, lab.tasks[task], adapter, sampler, scale, o.split, o.batch, folder=folder,
                workers=self.workers, ask=self._stop_if_asked,
            )  # fmt: skip
        if found.failed:
            raise BenchError(f"task {task!r} could not score {found.failed} of {len(found.strata)} held-out pictures")
        return found

    def _kept(self) -> tuple[str, ...]:
        return (STUDENT, EMA, *self.method.adapters)

    def _save(self) -> None:
        """Checkpoint, unless the one there is of this very moment."""
        if self.saved == (moment := (self.step, len(self.evaluated))):
            return
        self.saved = moment
        check_equal(self.lab, self.method.name, f"after update {self.step}")
        tensors: dict[str, Tensor] = {}
        for name in self._kept():
            tensors |= {f"adapter/{name}/{k}": v for k, v in self.lab.backbone.adapters.state(name).items()}
        tensors |= {f"method/{name}": tensor for name, tensor in self.method.state().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
        state = {
            "step": self.step,
            "last_share": self.last_share,
            "evaluated": self.evaluated,
            "meter": self.lab.backbone.meter.whole(self.workers),
            "scaler": self.scaler.state_dict(),
        }
        self.run.save(tensors, state)

    def _load(self, tensors: dict[str, Tensor], state: dict) -> None:
        for name in self._kept():
            prefix = f"adapter/{name}/"
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.lab.backbone.adapters.load_state(name, mine, str(self.run.checkpoint))
        remembered = {k.removeprefix("method/"): v for k, v in tensors.items() if k.startswith("method/")}
        self.method.load_state(remembered)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, field = key.split("/")
                moments.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.last_share = state["last_share"]
        self.saved = (self.step, len(self.evaluated))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.workers.main:  # what all have spent until now
            self.lab.backbone.meter.load(state["meter"])
