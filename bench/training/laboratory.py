"""A frozen student and its teachers, on which a method's gradients can be measured without training."""

from pathlib import Path

from bench.api.lab import STUDENT
from bench.api.method import Method
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.probes.estimates import ProbeLab
from bench.registry import find
from bench.training.execute import equip, load_backbone
from bench.training.start import add_student
from bench.training.teachers import locate
from bench.weights.hub import adapter_folder


def laboratory(spec: Spec, student: str, root: Path) -> tuple[ProbeLab, Method]:
    """Load the backbone, the teachers and a student, and build the method.

    `student`: "base" for a fresh adapter with the spec's rank, alpha and targets, or an adapter folder.
    """
    descriptor = describe(spec.backbone)
    backbone = load_backbone(spec.backbone, spec.device, spec.compute, root / "cache")
    if student == "base":
        add_student(backbone, spec, 0)
    else:
        backbone.adapters.load(STUDENT, adapter_folder(student), trainable=True)
    method_class = find("method", spec.method)
    method = method_class(method_class.Options.model_validate(spec.params))
    # A method's own adapters (a frozen copy of the student, for example) start equal to the student, as in training.
    for name in method.adapters:
        backbone.adapters.add_like(name, STUDENT)
    teachers = locate(spec, descriptor, root, descriptor.fingerprint())
    lab = ProbeLab.of(equip(spec, descriptor, backbone, teachers))
    return lab, method
