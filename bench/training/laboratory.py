"""A frozen student with its teachers, to measure a method on."""

from pathlib import Path

from bench.api.lab import STUDENT
from bench.api.method import Method
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.probes.estimates import ProbeLab
from bench.registry import find
from bench.training.execute import equip, load_backbone
from bench.training.teachers import locate
from bench.weights.hub import adapter_folder


def laboratory(spec: Spec, student: str, root: Path) -> tuple[ProbeLab, Method]:
    """Backbone, teachers and a student: the base (a fresh adapter of the spec's shape) or an adapter folder."""
    from bench.backbones.adapters import Shape

    descriptor = describe(spec.backbone)
    backbone = load_backbone(spec.backbone, spec.device, spec.compute, root / "cache")
    if student == "base":
        shape = Shape(spec.lora.rank, spec.lora.alpha, spec.lora.targets)
        backbone.adapters.add(STUDENT, shape, seed=0, trainable=True)
    else:
        backbone.adapters.load(STUDENT, adapter_folder(student), trainable=True)
    method_class = find("method", spec.method)
    method = method_class(method_class.Options.model_validate(spec.params))
    for name in method.adapters:
        backbone.adapters.add(name, backbone.adapters.configs[STUDENT])
        backbone.adapters.load_state(name, backbone.adapters.state(STUDENT))
    teachers = locate(spec, descriptor, root, descriptor.fingerprint())
    return ProbeLab.of(equip(spec, descriptor, backbone, teachers)), method
