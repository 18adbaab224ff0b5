"""Throughput on this machine: python -m pytest tests/benchmarks -n 0 --benchmark-only --benchmark-columns=min,median,ops

Batch sizes are those of the main job. Skipped in the ordinary suite (timings are no pass or fail).
"""

import pytest
import torch

from bench.api.lab import STUDENT, Lab
from bench.backbones.adapters import Shape
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.schedule import make_schedule
from bench.sampler.step import step
from bench.sampler.transitions import KERNELS
from bench.scoring.loading import load_tasks
from methods.opd_analytic import OpdAnalytic, OpdOptions

BATCH = 96


@pytest.fixture(autouse=True)
def _only_on_request(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--benchmark-only"):
        pytest.skip("a benchmark; run with --benchmark-only")


@pytest.fixture
def lab(micro) -> Lab:
    micro.adapters.add(STUDENT, Shape(32, 64.0), trainable=True)
    micro.adapters.add("teacher", Shape(32, 64.0), seed=1)
    sampler = Sampler(make_schedule(10), KERNELS["ode"])
    tasks = load_tasks(("geneval", "ocr", "pickscore"), "micro")
    return Lab(micro, tasks, dict.fromkeys(tasks, "teacher"), dict.fromkeys(tasks, 1.0), sampler, 1.0, seed=0)


@pytest.mark.parametrize("kernel", ["ode", "flow_sde", "cps"])
def test_step_kernel(benchmark, kernel: str) -> None:
    at = KERNELS[kernel].coefficients(make_schedule(10), 0.0 if kernel == "ode" else 0.7)[4]
    x, v, u, noise = torch.randn(4, BATCH, 64, 4, 4)
    benchmark(lambda: step(x, v, at, v_uncond=u, guidance=4.5, noise=noise))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_rollout(benchmark, lab: Lab, guidance: float) -> None:
    conditioning = lab.encode(lab.prompts("geneval", BATCH))
    noise = lab.backbone.noise(BATCH, lab.generator("noise"))
    field = lab.velocity(conditioning, None, guidance)
    benchmark.pedantic(lambda: rollout(field, noise, lab.sampler, lab.generator("kernel")), rounds=5, warmup_rounds=1)


# The straightforward loop is one timestep at a time; the published shape is that with batches of 3.
SHAPES = {
    "fused": {"execution": "fused", "trajectories": 24},
    "plain, steps batched": {"execution": "plain", "trajectories": 24, "chunk": 216},
    "plain, one step at a time": {"execution": "plain", "trajectories": 24, "chunk": 24},
    "published shape, batch 3": {"execution": "plain", "trajectories": 3, "chunk": 3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_opd_analytic_task_update(benchmark, lab: Lab, shape: str) -> None:
    """Gradient of 24 trajectories of one task (eight repetitions of 3 in the published shape)."""
    method = OpdAnalytic(OpdOptions(weighting="velocity", **SHAPES[shape]))

    def update() -> None:
        for _ in range(24 // method.options.trajectories):
            with torch.no_grad():
                experience = method.collect(lab, "geneval")
            for piece in method.losses(lab, "geneval", experience):
                piece.backward()

    benchmark.pedantic(update, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("task", ["geneval", "ocr", "pickscore"])
def test_scorer(benchmark, lab: Lab, task: str) -> None:
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = (lab.tasks[task].prompts("test") * 2)[:BATCH]
    lab.tasks[task].score(images, prompts)
    benchmark.pedantic(lambda: lab.tasks[task].score(images, prompts), rounds=5)
