"""A scorer that works elsewhere does so while the model draws the next images, and what is found is the same."""

import threading
from pathlib import Path

import pytest
import torch

from bench.api.lab import Lab
from bench.api.task import Prompt, Scores
from bench.backbones.micro.backbone import MicroBackbone
from bench.config.resolve import resolve
from bench.errors import BenchError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import euler
from bench.training.evaluate import evaluate
from bench.training.execute import Session, execute
from methods.rl.method import RlMethod
from tasks.ocr.task import Ocr
from tests.training.test_resume import RL, records

pytestmark = pytest.mark.usefixtures("few_prompts")


def test_training_samples_the_next_task_meanwhile(tmp_path: Path, monkeypatch) -> None:
    """OCR answers only once PickScore's images are asked for: a run that waited for it would not go on."""
    settings = [*RL, "budget.updates=2", "evaluation.points=[]", "evaluation.steps=1", "evaluation.split=validation"]
    spec = resolve("multi_reward", ["ocr", "pickscore"], overrides=settings)
    execute(spec, Session(tmp_path / "alone"))
    asked, threads, collect, score = threading.Event(), set(), RlMethod.collect, Ocr.score
    asked.set()

    def watched(self: RlMethod, lab: Lab, task: str):
        asked.set() if task == "pickscore" else asked.clear()
        return collect(self, lab, task)

    def waits(self: Ocr, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
        threads.add(threading.current_thread())
        assert asked.wait(60)
        return score(self, images, prompts)

    monkeypatch.setattr(Ocr, "elsewhere", True)
    monkeypatch.setattr(Ocr, "score", waits)
    monkeypatch.setattr(RlMethod, "collect", watched)
    execute(spec, Session(tmp_path / "meanwhile"))
    assert len(threads) > 1  # the first picture is tried in this one, before training
    assert records(tmp_path / "meanwhile") == records(tmp_path / "alone")


def test_an_evaluation_draws_the_next_images_meanwhile(micro: MicroBackbone, monkeypatch) -> None:
    sampler, task = euler(FlowLevels(1.0), 1), Ocr("micro")
    expected = evaluate(micro, task, None, sampler, 1.0, "validation", batch=5)
    drawn, seen, velocity, score = threading.Condition(), [0, 0], MicroBackbone.velocity, Ocr.score

    def draws(self: MicroBackbone, *given, **more):
        with drawn:
            seen[0] += 1
            drawn.notify_all()
        return velocity(self, *given, **more)

    def waits(self: Ocr, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
        with drawn:
            seen[1] += 1
            assert drawn.wait_for(lambda: seen[0] >= min(3, seen[1] + 1), 60)
        return score(self, images, prompts)

    monkeypatch.setattr(Ocr, "elsewhere", True)
    monkeypatch.setattr(Ocr, "score", waits)
    monkeypatch.setattr(MicroBackbone, "velocity", draws)
    found = evaluate(micro, task, None, sampler, 1.0, "validation", batch=5)
    assert seen == [3, 3]
    assert found.record() == expected.record()


def test_a_reward_that_is_no_number_is_an_error_where_it_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Ocr, "elsewhere", True)
    honest = Ocr.score

    def spoils(self: Ocr, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
        scores = honest(self, images, prompts)
        scores.rewards[0] = float("nan")
        return scores

    spec = resolve("multi_reward", ["ocr"], overrides=[*RL, "budget.updates=1", "evaluation.points=[]"])
    monkeypatch.setattr(Ocr, "score", spoils)
    with pytest.raises(BenchError, match="update 1: the scorer of task 'ocr' returned a reward that is not finite"):
        execute(spec, Session(tmp_path / "results"))


@pytest.mark.parametrize("waiting", [0, 2**30])
def test_images_that_would_fill_the_host_s_memory_do_not_wait_for_a_scorer(tmp_path: Path, monkeypatch, waiting: int) -> None:
    from bench.api import lab as module

    monkeypatch.setattr(module, "WAITING", waiting)
    monkeypatch.setattr(module, "parts_of", lambda latents: (slice(i, i + 3) for i in range(0, len(latents), 3)))
    threads, honest = [], Ocr.score

    def score(self: Ocr, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
        threads.append(threading.current_thread() is threading.main_thread())
        return honest(self, images, prompts)

    monkeypatch.setattr(Ocr, "elsewhere", True)
    monkeypatch.setattr(Ocr, "score", score)
    settings = [*RL, "budget.updates=1", "evaluation.points=[]", "evaluation.steps=1", "evaluation.split=validation"]
    execute(resolve("multi_reward", ["ocr"], overrides=settings), Session(tmp_path / "results"))
    assert threads[0]  # the first picture is tried before training
    assert threads[1:4] == [waiting == 0] * 3  # eight images of the update
