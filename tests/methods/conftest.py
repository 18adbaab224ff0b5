import pytest
import torch

from bench.api.lab import STUDENT, Lab
from bench.backbones.adapters import Shape
from bench.sampler.rollout import Sampler
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS
from bench.scoring.loading import load_tasks

TASKS = ("geneval", "ocr")


def shake(backbone, name: str, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for parameter in backbone.adapters.parameters(name):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.device))


@pytest.fixture
def make_lab(micro):
    """make_lab(kernel, eta, guidance) -> a Lab on micro with two random teachers and a random student."""

    def make(kernel: str = "ode", eta: float = 0.0, guidance: float = 1.0, steps: int = 6) -> Lab:
        micro.adapters.add(STUDENT, Shape(4, 8.0), trainable=True)
        shake(micro, STUDENT, 0.02)
        for task in TASKS:
            micro.adapters.add(f"teacher-{task}", Shape(4, 8.0))
            shake(micro, f"teacher-{task}")
        sampler = Sampler(make_schedule(steps), KERNELS[kernel], eta)
        teachers = {task: f"teacher-{task}" for task in TASKS}
        return Lab(
            micro, load_tasks(TASKS, "micro"), teachers, dict.fromkeys(TASKS, guidance), sampler, guidance, seed=0
        )

    return make


@pytest.fixture
def gradient():
    """gradient(lab, method, task) -> (loss, flat gradient of the student)."""

    def compute(lab: Lab, method, task: str) -> tuple[float, torch.Tensor]:
        parameters = lab.backbone.adapters.parameters(STUDENT)
        for parameter in parameters:
            parameter.grad = None
        with torch.no_grad():
            experience = method.mix(lab, {task: method.collect(lab, task)})[task]
        total = 0.0
        for piece in method.losses(lab, task, experience):
            total += float(piece.detach())
            piece.backward()
        return total, torch.cat([p.grad.flatten() for p in parameters])

    return compute
