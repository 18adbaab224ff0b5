"""One run, read from its folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench.backbones.pipeline_files import NETWORK_CONFIG
from bench.config.families import is_address
from bench.errors import MissingError, UsageError
from bench.results import frames
from bench.store.damage import check_settings
from bench.store.names import STARTS, weights_folder
from bench.system.files import described, is_file, read_record, read_rows
from bench.weights.hub import model_name


@dataclass(frozen=True)
class Result:
    """A run's folder. Everything is read when it is asked for; DamagedError is raised for files that are invalid."""

    folder: Path

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Its settings, as in spec.json."""
        return check_settings(self.folder)

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """Costs and the scores of all models; None before the run has finished."""
        path = self.folder / "summary.json"
        with described(path):
            return read_record(path) if is_file(path) else None

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Provenance: one entry per start, with versions, device, commit and hashes."""
        return self.rows(STARTS)

    def rows(self, log: str) -> list[dict[str, Any]]:
        """The rows of one of its logs; empty if it has none."""
        path = self.folder / log
        with described(path):
            return read_rows(path) if is_file(path) else []

    @property
    def weights(self) -> Path:
        """Folder of the student: an adapter that peft and diffusers load, or a network after full fine-tuning."""
        return weights_folder(self.folder, bool(self.spec.get("full_finetuning")))

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per update: losses, norms, learning rate, and what has been spent so far."""
        return frames.metrics([self])

    @property
    def evaluations(self) -> pd.DataFrame:
        """Held-out scores along training (bench/results/frames.py)."""
        return frames.evaluations([self])

    @property
    def scores(self) -> pd.DataFrame:
        """Held-out scores of the student, the base and the teachers at the end (bench/results/frames.py)."""
        return frames.scores([self])

    def pipeline(self, merged: bool = False, **options: Any) -> Any:
        """The student as a pipeline of stock diffusers; `options` go to its `from_pretrained`.

        `merged` adds an adapter to the network's weights, so that `save_pretrained` saves a model without adapters.
        Raises UsageError for a backbone that is no pipeline of diffusers, and MissingError before the run has finished.
        """
        import diffusers

        backbone = self.spec["backbone"]
        if not is_address(backbone):
            raise UsageError(f"the backbone {backbone!r} is no pipeline of diffusers")
        if self.summary is None:
            raise MissingError(f"{self.folder} has not finished: rerun its command to resume it")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(model_name(backbone), **options)
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        network = getattr(pipeline, part)
        if self.spec.get("full_finetuning"):
            name = read_record(self.weights / NETWORK_CONFIG)["_class_name"]
            student = getattr(diffusers, name).from_pretrained(self.weights, dtype=network.dtype)
            pipeline.register_modules(**{part: student})
        elif hasattr(pipeline, "load_lora_weights"):
            pipeline.load_lora_weights(self.weights)
            if merged:
                pipeline.fuse_lora(components=[part])
                pipeline.unload_lora_weights()
        else:
            from peft import PeftModel

            # Changes the network in place, and keeps its class, which the pipeline checks.
            student = PeftModel.from_pretrained(network, self.weights)
            if merged:
                student.merge_and_unload()
        return pipeline


def results(folder: Path | str) -> list[Result]:
    """All runs under a folder, by name. Raises UsageError if it does not exist."""
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder")
    return [Result(path.parent) for path in sorted(root.rglob("spec.json"))]
