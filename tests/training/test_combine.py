"""A method's own rule for the tasks' gradients, and what it remembers between updates."""

from pathlib import Path

import pytest
import torch

from bench.api.lab import STUDENT
from bench.api.method import Method
from bench.config.resolve import resolve
from bench.errors import BenchError
from bench.store.run import read_checkpoint
from bench.training.execute import Session, execute
from bench.training.gradients import give, take
from methods.opd_analytic import OpdAnalytic

pytestmark = pytest.mark.usefixtures("few_prompts")

QUICK = ["params.trajectories=2", "evaluation.steps=1", "checkpoint_every=1", "evaluation.points=[]"]


def spec(updates: int, *more: str):
    return resolve("opd_analytic", ["ocr", "pickscore"], overrides=[*QUICK, "params.batches=mixed", f"budget.updates={updates}", *more])


def student(folder: Path) -> torch.Tensor:
    """The trained weights of the one run in a results folder, flat."""
    (checkpoint,) = folder.glob("opd*/checkpoint.safetensors")
    tensors, _ = read_checkpoint(checkpoint)
    return torch.cat([v.flatten() for k, v in sorted(tensors.items()) if k.startswith(f"adapter/{STUDENT}")])


def test_the_weighted_sum_is_what_nobody_asks_for(tmp_path: Path, monkeypatch) -> None:
    execute(spec(2), Session(tmp_path / "a" / "results"))
    seen = []

    def combine(self, lab, gradients, weights):
        seen.append((list(gradients), dict(weights), [g.norm() for g in gradients.values()]))
        return Method.combine(self, lab, gradients, weights)

    method = OpdAnalytic(OpdAnalytic.Options())
    assert not method.combines()
    monkeypatch.setattr(OpdAnalytic, "combine", combine)
    assert method.combines()
    execute(spec(2), Session(tmp_path / "b" / "results"))
    one, other = student(tmp_path / "a" / "results"), student(tmp_path / "b" / "results")
    assert (one - other).norm() < 1e-5 * one.norm()
    assert [(tasks, weights) for tasks, weights, _ in seen] == [(["ocr", "pickscore"], {"ocr": 0.5, "pickscore": 0.5})] * 2
    assert min(norm for _, _, norms in seen for norm in norms) > 0


def test_what_is_combined_is_what_the_optimiser_gets(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(OpdAnalytic, "combine", lambda self, lab, gradients, weights: 0 * gradients["ocr"])
    execute(spec(2), Session(tmp_path / "results"))
    (checkpoint,) = (tmp_path / "results").glob("opd*/checkpoint.safetensors")
    tensors, _ = read_checkpoint(checkpoint)
    moved = [v for k, v in tensors.items() if k.startswith(f"adapter/{STUDENT}") and "lora_B" in k]
    assert moved
    assert all(not tensor.any() for tensor in moved)  # they start at zero


def test_gradients_are_free_of_float16_s_loss_scale(tmp_path: Path, monkeypatch) -> None:
    found: dict[str, torch.Tensor] = {}
    for precision in ("float32", "float16"):

        def combine(self, lab, gradients, weights, name=precision):
            found.setdefault(name, gradients["ocr"].clone())
            return Method.combine(self, lab, gradients, weights)

        monkeypatch.setattr(OpdAnalytic, "combine", combine)
        execute(spec(1, f"compute.precision={precision}"), Session(tmp_path / precision / "results"))
    assert torch.nn.functional.cosine_similarity(found["float32"], found["float16"], dim=0) > 0.98
    assert float(found["float16"].norm()) == pytest.approx(float(found["float32"].norm()), rel=0.1)


def test_a_task_s_gradient_that_is_not_finite_is_not_combined_away(tmp_path: Path, monkeypatch) -> None:
    honest = OpdAnalytic.losses

    def poisoned(self, lab, task, experience):
        for piece in honest(self, lab, task, experience):
            if task == "ocr":
                piece.register_hook(lambda grad: grad * float("inf"))
            yield piece

    monkeypatch.setattr(OpdAnalytic, "losses", poisoned)
    monkeypatch.setattr(OpdAnalytic, "combine", lambda self, lab, gradients, weights: gradients["pickscore"])
    with pytest.raises(BenchError, match="gradient norm is"):
        execute(spec(1), Session(tmp_path / "results"))


def test_what_a_method_remembers_is_resumed_to_the_bit(tmp_path: Path, monkeypatch) -> None:
    """Each update's gradient is scaled by how many there were: forgotten, the resumed run would be another."""

    def combine(self, lab, gradients, weights):
        self.count = getattr(self, "count", torch.zeros(())) + 1
        return Method.combine(self, lab, gradients, weights) * self.count

    monkeypatch.setattr(OpdAnalytic, "combine", combine)
    monkeypatch.setattr(OpdAnalytic, "state", lambda self: {"count": getattr(self, "count", torch.zeros(()))})
    monkeypatch.setattr(OpdAnalytic, "load_state", lambda self, state: setattr(self, "count", state["count"]))
    clipped = "optimizer.clip=1000"
    execute(spec(4, clipped), Session(tmp_path / "whole" / "results"))
    session = Session(tmp_path / "cut" / "results")
    with monkeypatch.context() as patch:
        honest = OpdAnalytic.collect

        def collect(self, lab, task):
            if lab.step == 2:
                raise BenchError("cut off")
            return honest(self, lab, task)

        patch.setattr(OpdAnalytic, "collect", collect)
        with pytest.raises(BenchError, match="cut off"):
            execute(spec(4, clipped), session)
    execute(spec(4, clipped), session)
    assert torch.equal(student(tmp_path / "whole" / "results"), student(session.root))
    (checkpoint,) = session.root.glob("opd*/checkpoint.safetensors")
    assert read_checkpoint(checkpoint)[0]["method/count"] == 4


def test_a_gradient_goes_back_to_where_it_came_from() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), ())]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    wanted = [parameters[0].grad.clone(), parameters[1].grad.clone(), torch.zeros(())]
    flat = take(parameters)
    assert all(parameter.grad is None for parameter in parameters)
    give(parameters, flat)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, wanted))
    with pytest.raises(ValueError, match="shape"):
        give(parameters, flat[1:])
