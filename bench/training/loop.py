"""The training loop: gradients task by task, the optimiser, EMA, budget, checkpoints and held-out evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.analysis.alarms import BASE, alarms
from bench.analysis.records import score
from bench.api.features import FeatureSpace
from bench.api.lab import EMA, STUDENT, Lab
from bench.api.method import Method
from bench.backbones.adapters import student_shape
from bench.config.optimizers import optimizer_of
from bench.config.spec import LoraSpec
from bench.errors import BenchError, Interrupted, UsageError
from bench.hashing import seed_of
from bench.probes.estimates import ProbeLab
from bench.probes.interference import interference
from bench.sampler.rollout import Sampler
from bench.sampler.total import Total
from bench.scoring.folders import PICTURES
from bench.store.run import Run
from bench.system.peak import Peak
from bench.training.ema import averages_at, decay_at
from bench.training.evaluate import Evaluation, evaluate
from bench.training.gradients import give, take
from bench.training.out_of_memory import memory
from bench.training.returned import combination_of, piece_of, state_of
from bench.training.sharing import Watch, check_equal
from bench.training.start import add_student, layer_of, read_start, targets_of


@dataclass
class Progress:
    """What listeners receive after every update, every held-out evaluation and every batch of an evaluation."""

    step: int
    """Number of updates done."""
    fraction: float
    """Fraction of the budget spent, in [0, 1]."""
    scores: dict[str, float] | None = None
    """task -> held-out score; None after an update or a batch."""
    doing: str = ""
    """After a batch of an evaluation: which, and how far it is; other text is empty."""


class Loop:
    """Trains one student. Its mutable state is in the adapters, the optimiser, the loss scaler and the counters."""

    def __init__(self, run: Run, lab: Lab, method: Method, evaluation_sampler: Sampler):
        self.run, self.lab, self.method, self.spec = run, lab, method, run.spec
        self.workers = lab.workers
        self.step = 0
        """Number of updates done."""
        self.last_fraction = 0.0
        """Fraction of the budget when the last update started."""
        self.evaluated: list[float] = []
        """Fractions of the budget at which the student has been evaluated."""
        self.saved = (0, 0)
        """`step` and the number of evaluated points at the last checkpoint."""
        self.stop_requested: Callable[[], bool] = lambda: False
        """Called before every update and every batch of an evaluation; true once the user asked to stop."""
        self.listen: Callable[[Progress], None] = lambda _: None
        """Called after every update, held-out evaluation and batch of an evaluation."""
        self.peak = Peak(lab.backbone.device)
        """Of the updates, since the run began."""
        self.features: FeatureSpace | None = None
        """In which evaluations measure the diversity of images; None leaves it out."""
        backbone, spec = lab.backbone, run.spec
        self.evaluation_sampler = evaluation_sampler
        shape = student_shape(spec)
        init = seed_of(spec.seed, "adapter") % 2**31
        add_student(backbone, spec, init)
        for name in (EMA, *method.adapters):
            backbone.adapters.add(name, shape, init)
        self.parameters = backbone.adapters.parameters(STUDENT)
        self.optimizer = optimizer_of(spec.optimizer, self.parameters)
        # float16 gradients underflow without loss scaling; other precisions have float32's range.
        scaled = spec.compute.precision == "float16"
        self.scaler = torch.amp.GradScaler(backbone.device.type, enabled=scaled)

    @property
    def fraction(self) -> float:
        """Fraction of the budget spent, in [0, 1]; 1 immediately for a method that does not train."""
        if not self.method.trains:
            return 1.0
        budget, meter = self.spec.budget, self.lab.backbone.meter
        if budget.updates:
            return min(1.0, self.step / budget.updates)
        spent = meter.whole(self.workers)
        if budget.nfe:
            nfe = spent["evaluations"].get("training", 0)
            return min(1.0, nfe / budget.nfe)
        seconds = sum(spent["seconds"].get(clock, 0) for clock in ("training", "scoring"))
        return min(1.0, seconds / budget.seconds)

    def train(self) -> None:
        """Train to the end of the budget, from the last checkpoint if there is one.

        Raises BenchError if a loss or gradient is not finite, UsageError if processes disagree, Interrupted on request.
        """
        restored = self.run.restore()
        if restored:
            self._load(*restored)
        else:
            self._prepare()
        inner_points = {point for point in self.spec.evaluation.points if 0 < point < 1}
        # A run that an alarm may end is compared with its start too.
        start = {BASE} if self.spec.evaluation.stop_on_alarm and self.method.trains else set()
        points = sorted(start | inner_points | {1.0})
        alarmed = self._alarmed()  # a run that was stopped before its summary was written
        while True:
            fraction = self.fraction
            reached = [p for p in points if p <= fraction and p not in self.evaluated]
            if self.step and (reached or self.step % self.spec.checkpoint_every == 0):
                self._save()  # an evaluation may fail where training did not, and must not lose the updates
            if reached:
                scores = self._evaluate(reached)
                self._save()
                self.listen(Progress(self.step, fraction, scores))
                alarmed = self._alarmed()
            self._stop_if_asked()
            if fraction >= 1 or alarmed:
                return
            with memory("training", self.spec), self.peak.measured():
                row = self._update(fraction)
            self.run.append("metrics.jsonl", row)
            self.listen(Progress(self.step, self.fraction))

    def _alarmed(self) -> bool:
        """Whether evaluation.stop_on_alarm ends the run here. All processes decide by the main one's records."""
        if not self.spec.evaluation.stop_on_alarm:
            return False
        return bool(self.workers.agreed(alarms(self.run.rows("evaluations.jsonl")) if self.workers.main else []))

    def _stop_if_asked(self) -> None:
        """Checkpoint and raise Interrupted if any process was asked to stop."""
        # All processes decide together, or the others would wait for this one in the next collective operation.
        if any(self.workers.gather(self.stop_requested())):
            if self.step:
                self._save()
            raise Interrupted(f"stopped after update {self.step}; rerun the command to resume")

    @torch.no_grad()
    def _prepare(self) -> None:
        """Let the method set up the student; a method that does not train is evaluated here."""
        if self.spec.lora.start:
            self._start(self.spec.lora)
        watch = Watch(self.lab, self.method.name)
        self.method.prepare(self.lab)
        watch.check_draws()
        state_of(self.method)  # what no checkpoint could hold is an error before the first update, not after it
        check_equal(self.lab, self.method, "before the first update")
        if self.lab.notes:
            cost = self.lab.backbone.meter.spent(self.workers)
            self.run.append("metrics.jsonl", {"step": 0} | self.lab.notes | cost)
        adapters = self.lab.backbone.adapters
        # The EMA and the method's own adapters start at the student that the method has just set up.
        for name in self._kept():
            torch._foreach_copy_(tuple(adapters.parameters(name)), tuple(self.parameters))
        if not self.method.trains:
            self._evaluate([1.0])

    def _start(self, lora: LoraSpec) -> None:
        """Load the adapter `lora.start` into the student. Raises UsageError if it does not cover all its layers."""
        assert lora.start  # callers check that it is set
        adapters = self.lab.backbone.adapters
        state = read_start(lora, adapters.targets)
        left = sorted(adapters.state(STUDENT).keys() - state.keys())
        if left:
            raise UsageError(f"the adapter {lora.start} does not change {layer_of(left[0])}: {targets_of(state)}")
        adapters.load_state(STUDENT, state, lora.start)

    def _update(self, fraction: float) -> dict:
        """Collect from every task of the plan, then take the method's optimiser steps; returns a row of metrics."""
        lab, spec, meter = self.lab, self.spec, self.lab.backbone.meter
        lab.step, lab.progress, lab.last_progress = self.step, fraction, self.last_fraction
        lab.notes = {}
        row: dict[str, float] = {}
        decayed = 1 - (1 - spec.optimizer.lr_end) * fraction
        for group in self.optimizer.param_groups:
            group["lr"] = spec.optimizer.lr * decayed
        with meter.purpose("training"):
            plan = self.method.plan(lab)
            watch = Watch(lab, self.method.name)
            with torch.no_grad():
                experiences = {task: self.method.collect(lab, task) for task in plan}
                experiences = self.method.mix(lab, experiences)
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
        self.last_fraction = fraction
        rate = {"lr": spec.optimizer.lr * decayed}
        means, notes = self._pooled(row), self._pooled(lab.notes)
        return {"step": self.step} | means | rate | notes | meter.spent(self.workers)

    def _pooled(self, numbers: dict[str, float]) -> dict[str, float]:
        """Means over the processes. Keys that concern one task end in /TASK or /TASK.SCORER: its shards weight them."""
        if self.workers.count == 1:
            return numbers
        even = 1 / self.workers.count
        weight = {}
        for name in numbers:
            place = name.partition("/")[2]
            task = next((task for task in self.lab.tasks if f"{place}.".startswith(f"{task}.")), place)
            weight[name] = self.lab.shard_fraction(task) if task else even
        mine = {name: weight[name] * value for name, value in numbers.items()}
        parts = self.workers.gather(mine)
        return {name: sum(part[name] for part in parts) for name in numbers}

    def _backward(self, plan: dict[str, float], experiences: dict[str, object]) -> dict[str, float]:
        """Leave the gradient of all tasks, summed over the processes, in the parameters; returns the losses."""
        losses, apart = {}, {}
        combines = self.method.combines()
        for task, weight in plan.items():
            # A method that combines gradients itself receives them unweighted, together with the weights.
            factor = 1.0 if combines else weight
            losses[f"loss/{task}"] = self._add_gradient(task, factor, experiences[task])
            if combines:
                apart[task] = take(self.parameters)
        if combines:
            self._combine(apart, plan)
            return losses
        for parameter in self.parameters:
            # Processes must add a tensor for every parameter, even if a shard contributed nothing. Without others it is
            # the same, because optimizers decay weights with a gradient of zero, and leave out those without any.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.workers.count > 1:
            self.workers.add(p.grad for p in self.parameters)
        return losses

    def _add_gradient(self, task: str, weight: float, experience: object) -> float:
        """Backpropagate a task's weighted loss, piece by piece to bound memory; returns the loss."""
        total = Total()
        for piece in self.method.losses(self.lab, task, experience):
            total.add(piece_of(self.method, piece))
            weighted = weight * self.lab.shard_fraction(task) * piece
            self.scaler.scale(weighted).backward()
        if not math.isfinite(value := float(total)):
            raise self._diverged(f"the loss of task {task!r} is {value}")
        return value

    @torch.no_grad()
    def _combine(self, gradients: dict[str, Tensor], plan: dict[str, float]) -> None:
        """Let the method combine the tasks' gradients into one.

        A gradient that is not finite is passed on instead, so that `_descend` handles the overflow.
        """
        self.workers.add(gradients.values())
        scale = self.scaler.get_scale()  # a power of two, so dividing and multiplying by it is exact
        own = gradients if scale == 1 else {task: gradient / scale for task, gradient in gradients.items()}
        broken = [gradient for gradient in own.values() if not gradient.isfinite().all()]
        if broken:
            combined = broken[0]
        else:
            like = next(iter(own.values()))
            combined = combination_of(self.method, self.method.combine(self.lab, own, plan), like)
        give(self.parameters, combined if scale == 1 else scale * combined)

    def _descend(self) -> float | None:
        """Clip, step and clear the gradient; returns its norm before clipping.

        Returns None if the gradient overflowed float16: the step is skipped and the loss scale lowered.
        """
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.optimizer.clip))
        overflowed = not math.isfinite(norm)
        # A scale of 1 cannot be lowered further; without float16 the scaler is disabled and its scale is always 1.
        if overflowed and self.scaler.get_scale() <= 1:
            raise self._diverged(f"the gradient norm is {norm}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return None if overflowed else norm

    @torch.no_grad()
    def _average(self) -> None:
        """Update the EMA, if it is due, after the optimiser step that was just taken."""
        taken = self.step * self.method.inner_updates + self.lab.inner
        if averages_at(taken, self.spec.ema.every):
            decay = decay_at(taken, self.spec.ema.decay)
            averages = self.lab.backbone.adapters.parameters(EMA)
            torch._foreach_lerp_(tuple(averages), tuple(self.parameters), 1 - decay)

    def _diverged(self, cause: str) -> BenchError:
        """The error for training that diverged, naming the checkpoint that is still good."""
        if not self.run.checkpoint.exists():
            kept = "there is no checkpoint yet"
        else:
            kept = f"the last good checkpoint is {self.run.checkpoint}"
        return BenchError(f"update {self.step + 1}: {cause}; {kept}")

    def _evaluate(self, points: list[float]) -> dict[str, float]:
        """Evaluate every task, measure interference if requested, and store both; returns the held-out scores."""
        fraction = points[-1]
        scores = {}
        self.method.show(self.lab, None)
        with self.lab.backbone.meter.purpose("evaluation"):
            for task in self.spec.tasks:
                # Earlier images are replaced by the final ones, but trackers have them.
                early = self.spec.evaluation.stop_on_alarm or self.spec.trackers
                keep = self.spec.evaluation.pictures and (fraction == 1 or early)
                folder = self.run.folder / PICTURES / task if keep else None
                record = self.evaluate(EMA, task, folder=folder).record()
                self.run.append("evaluations.jsonl", {"step": self.step, "share": fraction} | record)
                scores[task] = score(record)
        probes = self.spec.probes
        if probes.interference and len(self.spec.tasks) > 1 and self.method.trains:
            with self.lab.backbone.meter.purpose("probes"):
                lab = ProbeLab.of(self.lab)
                cosines = interference(self.method, lab, self.spec.tasks, probes.interference)
            self.run.append("probes.jsonl", {"step": self.step, "share": fraction, "interference": cosines})
        self.evaluated += points
        return scores

    def evaluate(
        self,
        adapter: str | None,
        task: str,
        guidance: float | None = None,
        folder: Path | None = None,
        split: str | None = None,
    ) -> Evaluation:
        """Score an adapter on the run's held-out split with the evaluation sampler; images go to `folder` if given.

        `guidance` replaces the evaluation's guidance scale, and `split` its split. Raises BenchError if an image could
        not be scored: a gap would break the comparisons, which are paired by prompt.
        """
        o = self.spec.evaluation
        scale = o.scale if guidance is None else guidance
        lab, sampler = self.lab, self.evaluation_sampler
        model = {EMA: "the student", None: "the base"}.get(adapter, adapter)

        def say(done: int, of: int) -> None:
            # Not `fraction`, which all processes compute together.
            doing = f"evaluating {model} on {task}, {done} of {of} images"
            self.listen(Progress(self.step, self.last_fraction, doing=doing))

        with memory("evaluation", self.spec), lab.backbone.at(o.resolution):
            found = evaluate(
                lab.backbone,
                lab.tasks[task],
                adapter,
                sampler,
                scale,
                split or o.split,
                o.batch,
                folder=folder,
                workers=self.workers,
                listener=say,
                ask=self._stop_if_asked,
                space=self.features,
            )
        if found.failed:
            total = len(found.strata)
            raise BenchError(f"task {task!r} could not score {found.failed} of {total} held-out images")
        return found

    def _kept(self) -> tuple[str, ...]:
        """Adapters that a checkpoint holds."""
        return (STUDENT, EMA, *self.method.adapters)

    def _save(self) -> None:
        """Write a checkpoint, unless the last one holds this state already."""
        now = (self.step, len(self.evaluated))
        if self.saved == now:
            return
        self.saved = now
        check_equal(self.lab, self.method, f"after update {self.step}")
        tensors: dict[str, Tensor] = {}
        for name in self._kept():
            # Not copies: `save` moves each to the host, and a student with all weights is as large as the network.
            adapter = self.lab.backbone.adapters.named(name)
            tensors |= {f"adapter/{name}/{key}": tensor.detach() for key, tensor in adapter.items()}
        tensors |= {f"method/{name}": tensor for name, tensor in state_of(self.method).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items() if v is not None}
        state = {
            "step": self.step,
            "last_share": self.last_fraction,
            "evaluated": self.evaluated,
            "meter": self.lab.backbone.meter.whole(self.workers),
            "scaler": self.scaler.state_dict(),
            "peak_bytes": self.peak_bytes(),
        }
        self.run.save(tensors, state)

    def peak_bytes(self) -> dict[str, int]:
        """The most memory that an update has used, of the process that used most."""
        for others in self.workers.gather(dict(self.peak.bytes)):
            self.peak.include(others)
        return self.peak.bytes

    def _load(self, tensors: dict[str, Tensor], state: dict) -> None:
        """Restore what `_save` wrote."""
        for name in self._kept():
            adapter = _under(f"adapter/{name}/", tensors)
            self.lab.backbone.adapters.load_state(name, adapter, str(self.run.checkpoint))
        self.method.load_state(_under("method/", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer/", tensors).items():
            index, field = key.split("/")
            moments.setdefault(int(index), {})[field] = value
        # Learning rate and other groups of settings come from the spec, not from the checkpoint.
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.last_fraction = state["last_share"]
        self.saved = (self.step, len(self.evaluated))
        self.peak.include(state.get("peak_bytes", {}))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        if self.workers.main:  # it is the total of all processes, which must not be counted once per process
            self.lab.backbone.meter.load(state["meter"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
