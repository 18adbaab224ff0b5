"""Measure the extra gradient variance of PPO-style over analytic OPD, and compare it with its closed form.

    python -m methods.opd_ppo_excess [--tasks TASK,...] [--kernels cps,flow_sde] [--eta 0.8] [--states N] [--draws N]
        [--student FOLDER] [--output FILE]

At a fixed state let y = m + c z be the student's draw, q the teacher's mean, delta = (m - q) / c, J = (dm/dtheta) / c
and D the number of elements. The gradient of the sampled log-ratio is (|delta|^2 / 2 + delta.z) J^T z / D. Its mean is
J^T delta / D, the analytic gradient, which has no variance at a fixed state. The trace of its covariance is
((|delta|^4 / 4 + |delta|^2) |J|^2 + |J^T delta|^2) / D^2, where the Frobenius norm |J|^2 is estimated by |J^T u|^2 with
independent Gaussian u. The ratio of measured to predicted trace must be 1.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.analysis.stats import Estimate, estimate
from bench.api.lab import STUDENT, Lab
from bench.errors import UsageError, exit_on_error
from bench.registry import task_names
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.rollout import rollout
from bench.system.files import json_bytes
from bench.system.outputs import check_output, write_output
from methods.opd_ppo import ppo_loss


@dataclass(frozen=True)
class Excess:
    """One noise level: traces of the covariance at a fixed state, as means over states."""

    sigma: float
    measured: float
    predicted: float
    ratios: np.ndarray
    """Measured over predicted trace at each state, [states]. Their mean is not dominated by the few largest traces."""
    snr: float
    """Signal-to-noise ratio |mean|^2 / trace of one draw at a fixed state: a ratio of means over states. It is infinite
    for the analytic estimator."""

    @property
    def ratio(self) -> Estimate:
        """Mean of `ratios` with its interval over states."""
        return over_states(self.ratios)


def over_states(ratios: np.ndarray) -> Estimate:
    """Mean of per-state ratios [states], with its interval over states."""
    return estimate(ratios, np.zeros(len(ratios)))


def excess_at(lab: Lab, task: str, step: int, states_BCHW: Tensor, conditioning, draws: int, seed: int) -> Excess:
    """Measure one step of the schedule at given states [B, C, h, w], with `draws` draws per state."""
    parameters = lab.backbone.adapters.parameters(STUDENT)
    at, sigma = lab.sampler.coefficients[step], lab.sampler.schedule.sigmas[step]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(len(states_BCHW)):
        x, cond = states_BCHW[i : i + 1], conditioning[i : i + 1]
        with torch.no_grad():
            guide = Transition(x, lab.teacher(task, cond)(x, sigma), at)
        new = Transition(x, lab.velocity(cond, STUDENT)(x, sigma), at)
        # The old policy is the student itself, held constant: its draws carry no gradient.
        old = Gaussian(new.mean.detach(), at.c)
        size = x.numel()

        def gradient(scalar: Tensor) -> Tensor:
            parts = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
            filled = [p if p is not None else torch.zeros_like(q) for p, q in zip(parts, parameters)]
            return torch.cat([part.flatten() for part in filled]).double()

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator).to(like.device)

        total, squares, frobenius = torch.zeros((), dtype=torch.float64), 0.0, 0.0
        for _ in range(draws):
            drawn = old.sample(noise(x))
            # At new = old the ratio is 1, so that the clip range does not matter.
            loss = ppo_loss(new, old, guide, drawn, "log_ratio", 0.2, torch.zeros(1))
            sampled = gradient(loss.sum())
            total = total + sampled
            squares = squares + float(sampled @ sampled)
            row = gradient((new.mean * noise(x)).sum() / at.c)
            frobenius += float(row.square().sum()) / draws
        delta = (old.mean - guide.mean) / at.c
        pull = float(gradient((new.mean * delta).sum() / at.c).square().sum())
        d2 = float(delta.square().sum())
        # Unbiased trace of the covariance: sum |g|^2 - |sum g|^2 / n, over n - 1.
        measured = (squares - float(total @ total) / draws) / (draws - 1)
        predicted_trace = ((d2**2 / 4 + d2) * frobenius + pull) / size**2
        rows.append((measured, predicted_trace, pull / size**2))
    measured, predicted, signal = np.array(rows).T
    snr = float(signal.sum() / measured.sum())
    return Excess(sigma, float(measured.mean()), float(predicted.mean()), measured / predicted, snr)


def excess(lab: Lab, task: str, steps: list[int], states: int, draws: int) -> list[Excess]:
    """Measure several steps of the schedule on the student's own trajectories."""
    conditioning = lab.encode(lab.prompts(task, states))
    start = lab.backbone.noise(states, lab.generator("noise", task))
    field = lab.velocity(conditioning, STUDENT)
    visited = rollout(field, start, lab.sampler, lab.generator("kernel", task), keep=True).states
    return [excess_at(lab, task, k, visited[k], conditioning, draws, seed=k) for k in steps]


def as_json(task: str, kernel: str, eta: float, student: str, draws: int, rows: list[Excess]) -> dict:
    """The results of one task and kernel as plain numbers, in the form that `bench report` reads."""
    levels = [
        {"sigma": row.sigma, "measured": row.measured, "predicted": row.predicted, "ratio": row.ratio.numbers(),
         "snr": row.snr}
        for row in rows
    ]  # fmt: skip
    whole = over_states(np.mean([row.ratios for row in rows], 0))
    return {
        "task": task, "kernel": kernel, "eta": eta, "student": student, "states": len(rows[0].ratios), "draws": draws,
        "by_sigma": levels, "ratio": whole.numbers(),
    }  # fmt: skip


def show(found: dict) -> None:
    """Print the results of one task and kernel."""
    print(f"{found['task']}, {found['kernel']} eta {found['eta']:g}, student {found['student']}")
    print("sigma   measured    predicted   measured/predicted       SNR of one draw")
    for row in found["by_sigma"]:
        ratio = str(Estimate(*row["ratio"]))
        print(f"{row['sigma']:<8.3f}{row['measured']:<12.4g}{row['predicted']:<12.4g}{ratio:<25}{row['snr']:.3g}")
    print(f"{'all':<32}{Estimate(*found['ratio'])}")


def main() -> None:
    """Parse the command line, measure every task and kernel, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="ocr", help="comma-separated tasks")
    parser.add_argument("--kernels", default="cps", help="comma-separated stochastic kernels")
    parser.add_argument("--eta", type=float, default=0.8, help="noise level of the kernels")
    parser.add_argument("--states", type=int, default=16, help="states per step, at least 2")
    parser.add_argument("--draws", type=int, default=32, help="draws per state, at least 2")
    parser.add_argument("--student", default="base", help="'base', or an adapter folder")
    parser.add_argument("--output", type=Path, help="JSON file for bench report")
    arguments = parser.parse_args()
    if min(arguments.states, arguments.draws) < 2:
        raise UsageError(
            f"--draws is {arguments.draws} and --states is {arguments.states}: a covariance needs 2 or more draws, "
            "and its interval 2 or more states"
        )
    check_output(arguments.output)
    # Imported late, so that wrong arguments are reported at once.
    from bench.config.resolve import resolve
    from bench.training.laboratory import laboratory

    results = []
    for kernel in arguments.kernels.split(","):
        for task in task_names(arguments.tasks.split(",")):
            overrides = [f"sampler.kernel={kernel}", f"sampler.eta={arguments.eta}"]
            spec = resolve("opd_ppo", [task], overrides=overrides)
            lab, _ = laboratory(spec, arguments.student, Path("results/runs"))
            noisy = [k for k, at in enumerate(lab.sampler.coefficients) if at.c]
            rows = excess(lab, task, noisy, arguments.states, arguments.draws)
            results.append(as_json(task, kernel, arguments.eta, arguments.student, arguments.draws, rows))
            show(results[-1])
            # Written after every task, so that an interrupted measurement keeps what it has.
            if arguments.output:
                write_output(arguments.output, json_bytes(results))


if __name__ == "__main__":
    exit_on_error(main)
