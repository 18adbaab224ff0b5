"""The worked examples in docs/examples: each is a package of its own, installed and run by one and by two processes."""

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.backbones.micro.captions import caption, draw_brief, draw_scene
from bench.backbones.micro.world import draw
from bench.store.run import read_checkpoint

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
NAMES = ("dpo", "draft", "epsilon", "pcgrad")
COMMON = ["budget.updates=2", "evaluation.steps=1", "evaluation.points=[]", "evaluation.split=validation", "ema.every=1"]
RUNS = {
    "dpo": (["--method", "dpo", "--tasks", "ocr"], ["params.pairs=pairs", "params.batch=3"]),
    "draft": (["--method", "draft", "--tasks", "brightness"], ["params.trajectories=3", "params.last=2", "sampler.steps=4"]),
    "pcgrad": (["--method", "opd_pcgrad", "--tasks", "ocr,pickscore"], ["params.trajectories=3"]),
    "epsilon": (
        ["--method", "single_task", "--tasks", "brightness", "--backbone", "epsilon"],
        ["params.groups=2", "params.group_size=3", "sampler.steps=3", "lora.rank=2", "evaluation.guidance=1",
         "optimizer.lr=0.01"],
    ),
}  # fmt: skip


STARTER = """
import json, sys
from pathlib import Path
from tests import commands
commands.FEW = True
done = []
for words, folder, processes in json.loads(sys.argv[1]):
    done += commands.together(words, Path(folder), processes=processes) if processes > 1 else [commands.bench(words, Path(folder))]
print(json.dumps([[process.returncode, process.stderr] for process in done]))
"""


def run(*words: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the four packages."""
    folder = tmp_path_factory.mktemp("examples")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip())
    # The fresh environment sees what this one has (the harness, its dependencies, pip), so that nothing is downloaded.
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    sources = [folder / name for name in NAMES]
    for source in sources:  # building writes beside what it builds
        source.mkdir()
        for file in (EXAMPLES / source.name).iterdir():
            if file.is_file():
                (source / file.name).write_bytes(file.read_bytes())
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(python, *install, *sources, cwd=folder)
    return python


def write_pairs(folder: Path) -> None:
    """Drawn pictures, and the same ones inverted, as winners and losers."""
    rng = np.random.default_rng(0)
    briefs = [draw_brief(rng, "photo") for _ in range(8)]
    drawn = [torch.from_numpy(draw(draw_scene(brief, rng))).permute(2, 0, 1) for brief in briefs]
    pictures = torch.stack(drawn).clamp(0, 1).contiguous()
    folder.mkdir()
    prompts = "\n".join(caption(brief) for brief in briefs)
    save_file({"winner": pictures, "loser": (1 - pictures).contiguous()}, folder / "ocr.safetensors", {"prompts": prompts})


def launch(python: Path, words: list[str], folder: Path, *processes: int) -> list[tuple[int, str]]:
    """Exit codes and standard errors of a command in `folder/N` for each number N of processes.

    One process of that interpreter starts all of them, because each would otherwise import torch for itself.
    """
    asked = json.dumps([[words, str(folder / str(number)), number] for number in processes])
    given = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parents[1])}
    return [tuple(done) for done in json.loads(run(python, "-c", STARTER, asked, cwd=folder, env=given))]


def student(folder: Path) -> torch.Tensor:
    (checkpoint,) = folder.glob("results/runs/*/checkpoint.safetensors")
    tensors, state = read_checkpoint(checkpoint)
    assert state["step"] == 2
    return torch.cat([v.flatten() for k, v in sorted(tensors.items()) if k.startswith("adapter/student") and "lora_B" in k])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_and_two_processes_do_what_one_does(python: Path, tmp_path: Path, name: str) -> None:
    words, settings = RUNS[name]
    sets = [part for setting in (*COMMON, *settings) for part in ("--set", setting)]
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
        if name == "dpo":
            write_pairs(folder / "pairs")
    for code, said in launch(python, ["run", *words, *sets], tmp_path, 1, 2):
        assert code == 0, said[-3000:]
    trained = []
    for folder in folders:
        (summary,) = folder.glob("results/runs/*/summary.json")
        assert json.loads(summary.read_text())["updates"] == 2
        trained.append(student(folder))
    assert trained[0].norm() > 1e-4  # it starts at zero
    assert (trained[0] - trained[1]).norm() < 1e-3 * trained[0].norm()


@pytest.mark.slow
def test_a_draft_of_a_task_without_a_gradient_is_refused(python: Path, tmp_path: Path) -> None:
    sets = [part for setting in (*COMMON, *RUNS["draft"][1]) for part in ("--set", setting)]
    (tmp_path / "1").mkdir()
    ((code, said),) = launch(python, ["run", "--method", "draft", "--tasks", "ocr", *sets], tmp_path, 1)
    assert code == 2
    assert "the reward of task 'ocr' has no gradient" in said
    assert "Traceback" not in said


def test_the_epsilon_model_s_ode_is_ddim(tmp_path: Path, monkeypatch) -> None:
    """One Euler step of the velocity is one DDIM step at eta 0 of the noise that the network predicts."""
    monkeypatch.syspath_prepend(EXAMPLES / "epsilon")
    import bench_example_epsilon as example

    backbone = example.EpsilonBackbone("cpu")
    conditioning = backbone.encode(["a photo of a circle", "a star"])
    y = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    s, n = 0.7, 0.4
    stepped = y + (n - s) * backbone.velocity(y, s, conditioning, None)
    (alpha, sigma), (alpha_n, sigma_n) = (example.variance_preserving(torch.tensor([v])) for v in (s, n))
    x = y * (alpha + sigma)
    eps = backbone.transformer(x, sigma.expand(2), conditioning["sequence"])
    ddim = alpha_n * (x - sigma * eps) / alpha + sigma_n * eps  # Song et al., arXiv 2010.02502, Eq. 12 at eta 0
    assert torch.allclose(stepped * (alpha_n + sigma_n), ddim, atol=1e-5)
