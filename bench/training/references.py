"""Evaluations of the base and the teachers, with which every run compares its student.

They are read from the cache of the results folder, or from what was shipped with the weights, or made and cached.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.api.features import FeatureSpace
from bench.api.task import Task
from bench.config.compute import PLAIN, Compute
from bench.config.spec import Spec
from bench.errors import DamagedError, explained, one_line
from bench.hashing import text_hash
from bench.scoring.folders import PICTURES, identity
from bench.store.shapes import check_evaluation
from bench.system.files import is_there, read_record, write_atomic
from bench.training.evaluate import Evaluation
from bench.training.loop import Loop
from bench.training.measures import MEASURES, VERSION


class Keys:
    """Names of evaluations in the cache: two evaluations have the same name if they give the same record."""

    def __init__(self, spec: Spec, backbone: str, tasks: Mapping[str, Task], space: FeatureSpace | None):
        """`backbone` is its hash; `space` is the one in which diversity is measured."""
        self.spec, self.backbone, self.tasks, self.space = spec, backbone, tasks, space
        self._hashes: dict[tuple[str, str], str] = {}

    def of(self, task: str, weights: str, guidance: float, split: str) -> str:
        """The name for a model whose weights have this hash ("base" for the base), on the prompts of a split."""
        settings = self.spec.evaluation
        scorer, prompts = self.tasks[task].scorer_name, self._prompts_hash(task, split)
        parts: list[object] = [self.backbone, weights, task, scorer, prompts, guidance, settings.steps, split]
        parts.append(f"{MEASURES} {VERSION} {self.space.name if self.space else ''}")
        # Only values that are not the default enter the key, so that new settings leave it as it was.
        shaping = set(Compute.RESULT)
        if (chosen := self.spec.evaluation_compute.model_dump(include=shaping)) != PLAIN.model_dump(include=shaping):
            if not chosen["negative_prompt"]:
                del chosen["negative_prompt"]
            parts.append(chosen)
        if (settings.shift, settings.table) != (None, None):
            parts += [settings.shift, settings.table]
        return text_hash(parts)

    def _prompts_hash(self, task: str, split: str) -> str:
        """Hash of the prompts of the split, in order: those of files may change under the same task and scorer."""
        if (task, split) not in self._hashes:
            prompts = self.tasks[task].prompts(split)
            self._hashes[task, split] = text_hash([identity(p.stratum, p.text, p.metadata) for p in prompts])
        return self._hashes[task, split]


class References:
    """Evaluations of models that never change (base, teachers), shared between the runs of a results folder.

    Those of shipped models may come with the weights. Their images are cached too if the run keeps its own.
    """

    def __init__(self, loop: Loop, folder: Path, shipped: Path | None, say: Callable[[str], None]):
        """`folder` is the cache; `shipped` holds evaluations that came with the backbone's weights, if any."""
        self.loop, self.folder, self.shipped, self.say = loop, folder, shipped, say
        self.keys = Keys(loop.spec, loop.run.backbone_hash, loop.lab.tasks, loop.features)
        self.pictures: dict[str, dict[str, str]] = {}
        """model -> task -> the folder with its images, relative to the results folder."""

    def of(
        self,
        model: str,
        adapter: str | None,
        task: str,
        weights: str,
        guidance: float,
        split: str | None = None,
        keep: bool = True,
    ) -> dict:
        """The evaluation record of an adapter, from the cache if possible.

        `adapter`: its name on the backbone, None for the base. `weights`: the hash of its weights. `split`: of the
        prompts, if not the one that the run is evaluated on. `keep`: whether its images are kept if the run's own are.
        """
        spec, workers = self.loop.spec, self.loop.workers
        split = split or spec.evaluation.split
        pictures = spec.evaluation.pictures and keep
        key = self.keys.of(task, weights, guidance, split)
        path = self.folder / f"evaluation-{key}.json"
        kept = self.folder / f"{PICTURES}-{key}"
        if pictures:
            self.pictures.setdefault(model, {})[task] = f"{self.folder.name}/{kept.name}"
        known = None
        if workers.main and (os.path.exists(kept) or not pictures):
            known = self._kept(path, task, split)
        # Shipped evaluations have no images.
        if workers.main and known is None and self.shipped and not pictures:
            known = self._kept(self.shipped / path.name, task, split)
        if known := workers.agreed(known):
            return known
        # Images are written under a name of this run until complete: another run may be evaluating the same model.
        half = kept.with_name(f".{kept.name}.{self.loop.run.folder.name}") if pictures else None
        with self.loop.lab.backbone.meter.purpose("references", whole=True):
            result: Evaluation = self.loop.evaluate(adapter, task, guidance, half, split)
        if workers.main:
            try:
                self._keep(path, result.record(), half, kept)
            except OSError as error:  # not fatal: this run has its record, and later runs evaluate again
                self.say(f"the evaluation of {model} on {task} could not be cached: {explained(error)}")
                if half and not os.path.exists(kept):
                    shutil.rmtree(half, ignore_errors=True)
                    del self.pictures[model][task]
        return result.record()

    def _keep(self, path: Path, record: dict, half: Path | None, kept: Path) -> None:
        """Store a record and its images; those of another run that was faster are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if half and kept.exists():
            shutil.rmtree(half)
        elif half:
            half.rename(kept)
        write_atomic(path, json.dumps(record).encode())

    def _kept(self, path: Path, task: str, split: str) -> dict | None:
        """A cached evaluation; None, so that the model is evaluated again, if it is missing or damaged."""
        prompts = self.loop.lab.tasks[task].prompts(split)
        try:
            if not is_there(path):
                return None
            record = read_record(path)
            check_evaluation(path, record, task, len(prompts))
        except (DamagedError, OSError) as error:
            self.say(f"{one_line(error)}: evaluating again")
            return None
        return record
