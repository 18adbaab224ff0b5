"""Evaluations of the base and the teachers, with which every run compares its student.

They are read from the cache of the results folder, or from what was shipped with the weights, or made and cached.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.config.compute import PLAIN, Compute
from bench.errors import DamagedError, explained, one_line
from bench.hashing import text_hash
from bench.scoring.folders import PICTURES, identity
from bench.store.shapes import check_evaluation
from bench.system.files import is_there, read_record, write_atomic
from bench.training.evaluate import Evaluation
from bench.training.loop import Loop
from bench.training.measures import MEASURES, VERSION


class References:
    """Evaluations of models that never change (base, teachers), shared between the runs of a results folder.

    Those of shipped models may come with the weights. Their images are cached too if the run keeps its own.
    """

    def __init__(self, loop: Loop, folder: Path, shipped: Path | None, say: Callable[[str], None]):
        """`folder` is the cache; `shipped` holds evaluations that came with the backbone's weights, if any."""
        self.loop, self.folder, self.shipped, self.say = loop, folder, shipped, say
        self._hashes: dict[tuple[str, str], str] = {}
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
        settings = spec.evaluation
        split = split or settings.split
        pictures = settings.pictures and keep
        scorer = self.loop.lab.tasks[task].scorer_name
        backbone = self.loop.run.backbone_hash
        prompts = self._prompts_hash(task, split)
        space = self.loop.features
        parts: list[object] = [backbone, weights, task, scorer, prompts, guidance, settings.steps, split]
        parts.append(f"{MEASURES} {VERSION} {space.name if space else ''}")
        # Only values that are not the default enter the key, so that new settings leave it as it was.
        shaping = set(Compute.RESULT)
        if (chosen := spec.evaluation_compute.model_dump(include=shaping)) != PLAIN.model_dump(include=shaping):
            if not chosen["negative_prompt"]:
                del chosen["negative_prompt"]
            parts.append(chosen)
        if (settings.shift, settings.table) != (None, None):
            parts += [settings.shift, settings.table]
        key = text_hash(parts)
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

    def _prompts_hash(self, task: str, split: str) -> str:
        """Hash of the prompts of the split, in order: those of files may change under the same task and scorer."""
        if (task, split) not in self._hashes:
            prompts = self.loop.lab.tasks[task].prompts(split)
            self._hashes[task, split] = text_hash([identity(p.stratum, p.text, p.metadata) for p in prompts])
        return self._hashes[task, split]

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
