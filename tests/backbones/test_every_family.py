"""Every family of pipelines draws what stock diffusers draws, learns, resumes, and leaves adapters that it loads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.backbones.flow_scheduler import EULER
from bench.backbones.flux import Flux
from bench.backbones.full_weights import Full
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline_files import network_folder
from bench.backbones.scheduler_files import FILE as SCHEDULER
from bench.config.families import families
from bench.config.resolve import describe, resolve, teacher_spec
from bench.errors import BenchError, MissingError, UsageError
from bench.registry import find
from bench.sampler.rollout import rollout
from bench.training.execute import Session, execute
from bench.training.teacher_sets import check_teachers
from tests.commands import together
from tests.methods.conftest import shake
from tests.small_scorers import small_scorers
from tests.tiny_pipelines import PIPELINES, Tiny, save_teachers

STEPS = 5
CLOSE = 1e-5
"""Largest difference between pixels, of 0 to 1, in float32."""
PROMPTS = ["a photo of a red cup", "two dogs on a bench"]
TASKS = ("geneval", "ocr", "pickscore")


ONE_EACH = {tiny.family: name for name, tiny in reversed(PIPELINES.items())}
"""Family -> the first of its pipelines, for tests that take long."""
one_each = pytest.mark.parametrize("tiny", ONE_EACH.values(), indirect=True)


@pytest.fixture(scope="module", params=PIPELINES)
def tiny(request) -> Tiny:
    return PIPELINES[request.param]


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory)


def test_every_family_has_a_pipeline() -> None:
    assert {tiny.family for tiny in PIPELINES.values()} == set(families())


def loaded(folder: Path, tiny: Tiny, *more: str):
    """A backbone, and the spec of a run on it."""
    settings = [f"compute.resolution={tiny.side}", *tiny.more, f"evaluation.steps={STEPS}", *more]
    spec = resolve("single_task", ["geneval"], backbone=str(folder), overrides=settings)
    return describe(str(folder)).load("cpu", spec.compute), spec


def noise_of(backbone) -> torch.Tensor:
    return backbone.noise(len(PROMPTS), torch.Generator().manual_seed(0))


def drawn(backbone, spec, adapter: str | None = None) -> torch.Tensor:
    """Our images of the prompts."""
    conditioning, sampler = backbone.encode(PROMPTS), describe(spec.backbone).evaluation_sampler(spec)

    def velocity(x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return backbone.velocity(x, sigma, conditioning, adapter, spec.evaluation.scale)

    with torch.no_grad():
        return backbone.decode(rollout(velocity, noise_of(backbone), sampler, torch.Generator()).final)


@pytest.mark.parametrize("guidance", [None, 1.0, 2.0])
def test_images_are_those_of_diffusers(folder: Path, tiny: Tiny, guidance: float | None) -> None:
    backbone, spec = loaded(folder, tiny, *([] if guidance is None else [f"evaluation.guidance={guidance}"]))
    ours, scale = drawn(backbone, spec), spec.evaluation.scale
    assert ours.std() > 0.05
    passes = describe(str(folder)).evaluation_sampler(spec).passes(scale)
    assert backbone.meter.state()["evaluations"] == {"idle": STEPS * len(PROMPTS) * passes}
    if scale != 1:  # or the comparison says nothing about guidance: networks of random weights react weakly
        plain = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"guidance": 1.0})})
        assert (ours - drawn(backbone, plain)).abs().max() > 50 * CLOSE
    theirs = tiny.draw(folder, PROMPTS, noise_of(backbone), STEPS, scale)
    assert torch.allclose(ours, theirs, atol=CLOSE)


def test_a_negative_prompt_is_that_of_diffusers(folder: Path, tiny: Tiny) -> None:
    """At scale 3: encoded as the pipeline encodes it, which for some families is not how it encodes prompts."""
    words = "blurry, and of bad quality"
    settings = ["evaluation.guidance=3", f"compute.negative_prompt={json.dumps(words)}"]
    if describe(str(folder)).embedded_guidance:
        with pytest.raises(UsageError, match=r"compute\.negative_prompt has no effect"):
            loaded(folder, tiny, *settings)
        return
    backbone, spec = loaded(folder, tiny, *settings)
    ours = drawn(backbone, spec)
    without, plain = loaded(folder, tiny, settings[0])
    assert (ours - drawn(without, plain)).abs().max() > 50 * CLOSE
    theirs = tiny.draw(folder, PROMPTS, noise_of(backbone), STEPS, 3.0, negative=words)
    assert torch.allclose(ours, theirs, atol=CLOSE)
    assert plain.digest("") != spec.digest("")


def test_images_in_half_precision_differ_by_rounding(folder: Path, tiny: Tiny) -> None:
    """Ours keeps states and the VAE in float32, so it is the nearer one to diffusers in float32."""
    backbone, spec = loaded(folder, tiny, "compute.precision=bfloat16")
    ours, noise, scale = drawn(backbone, spec), noise_of(backbone), spec.evaluation.scale
    exact = tiny.draw(folder, PROMPTS, noise, STEPS, scale)
    theirs = tiny.draw(folder, PROMPTS, noise, STEPS, scale, dtype=torch.bfloat16)
    assert (ours - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()
    assert (ours - exact).abs().mean() < 0.02


@pytest.mark.parametrize("shape", [Shape(2, 4.0), Full()], ids=["lora", "full"])
def test_gradients_are_those_of_the_velocity(folder: Path, tiny: Tiny, shape: Shape | Full) -> None:
    """Along a direction in the student's weights, the gradient is the difference quotient."""
    backbone, spec = loaded(folder, tiny)
    backbone.adapters.add(STUDENT, shape, trainable=True)
    shake(backbone, STUDENT, 0.01 if shape == Full() else 0.05)
    parameters = backbone.adapters.parameters(STUDENT)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator) for p in parameters]
    x, conditioning = noise_of(backbone), backbone.encode(PROMPTS)
    weights = torch.randn(x.shape, generator=generator)

    def value() -> torch.Tensor:
        return (weights * backbone.velocity(x, 0.6, conditioning, STUDENT, spec.sampler.guidance)).sum()

    # The last block of some families computes text that nobody reads.
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True, materialize_grads=True)
    if shape == Full():  # so many weights that a random direction is nearly at right angles to the gradient
        length = float(sum(g.square().sum() for g in gradients)) ** 0.5
        direction = [2 * g / length for g in gradients]
    slope = float(sum((g * d).sum() for g, d in zip(gradients, direction)))

    # A small step, because linear attention has kinks.
    step, found = 2e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=sign * step)
            found.append(float(value()))
            torch._foreach_add_(parameters, direction, alpha=-sign * step)
    assert slope == pytest.approx((found[0] - found[1]) / (2 * step), rel=0.01)


def test_operations_are_those_that_torch_counts(folder: Path, tiny: Tiny) -> None:
    backbone, spec = loaded(folder, tiny)
    size, conditioning = describe(str(folder)).size(spec.compute), backbone.encode(PROMPTS[:1])
    assert size.parameters == sum(p.numel() for p in backbone.transformer.parameters())
    # torch does not count the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.velocity(noise_of(backbone)[:1], 0.5, conditioning, None)
    counted = backbone.size(conditioning).sampling(1, spec.compute).forward
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-6)
    # Where prompts are as long as they are, a descriptor counts for prompts of another length.
    assert conditioning.lengths or size.sampling(1, spec.compute).forward == counted


def test_an_adapter_gives_the_same_images_in_diffusers(folder: Path, tiny: Tiny, tmp_path: Path) -> None:
    backbone, spec = loaded(folder, tiny)
    backbone.adapters.add("tuned", Shape(2, 4.0))
    shake(backbone, "tuned", 0.3)
    backbone.adapters.save("tuned", tmp_path, base=str(folder))
    ours = drawn(backbone, spec, "tuned")
    assert (ours - drawn(backbone, spec)).abs().max() > 1e-3
    theirs = tiny.draw(folder, PROMPTS, noise_of(backbone), STEPS, spec.evaluation.scale, adapter=tmp_path)
    assert torch.allclose(ours, theirs, atol=CLOSE)


def test_a_student_with_all_weights_gives_the_same_images_in_diffusers(
    folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    backbone, spec = loaded(folder, tiny)
    backbone.adapters.add("tuned", Full())
    shake(backbone, "tuned", 0.03)
    ours = drawn(backbone, spec, "tuned")
    assert (ours - drawn(backbone, spec)).abs().max() > 1e-3
    tuned = Path(shutil.copytree(folder, tmp_path / "tuned"))
    shutil.rmtree(tuned / backbone.folder)
    backbone.adapters.save("tuned", tuned / backbone.folder)
    theirs = tiny.draw(tuned, PROMPTS, noise_of(backbone), STEPS, spec.evaluation.scale)
    assert torch.allclose(ours, theirs, atol=CLOSE)
    backbone.adapters.load("again", tuned)
    assert torch.equal(drawn(backbone, spec, "again"), ours)


def test_a_student_with_all_weights_starts_as_the_base_in_half_precision(folder: Path, tiny: Tiny) -> None:
    """Its weights are in float32, so that what runs outside of autocast rounds less."""
    backbone, spec = loaded(folder, tiny, "compute.precision=bfloat16")
    backbone.adapters.add(STUDENT, Full(), trainable=True)
    x, conditioning = noise_of(backbone), backbone.encode(PROMPTS)
    own, base = (backbone.velocity(x, 0.6, conditioning, name, spec.sampler.guidance) for name in (STUDENT, None))
    whole, _ = loaded(folder, tiny)
    with torch.no_grad():
        exact = whole.velocity(x, 0.6, conditioning, None, spec.sampler.guidance)
    assert (own - exact).abs().mean() < 1.2 * (base - exact).abs().mean() < 0.1 * exact.abs().mean()
    own.square().sum().backward()
    gradients = [p.grad for p in backbone.adapters.parameters(STUDENT) if p.grad is not None]
    assert len(gradients) > 0.8 * len(backbone.adapters.parameters(STUDENT))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_adapters_of_another_family_are_refused(folder: Path, tiny: Tiny, tmp_path_factory, tmp_path: Path) -> None:
    other = next(tiny_pipeline for tiny_pipeline in PIPELINES.values() if tiny_pipeline.family != tiny.family)
    save_teachers(str(other.folder(tmp_path_factory)), tmp_path, ("ocr",))
    backbone, _ = loaded(folder, tiny)
    with pytest.raises(UsageError, match="not match this backbone"):
        backbone.adapters.load("other", tmp_path / "ocr")


def test_teachers_of_another_network_are_refused_before_a_model_is_loaded(
    folder: Path, tiny: Tiny, tmp_path_factory, tmp_path: Path
) -> None:
    """As they are when they are loaded; teachers of the own network pass."""
    other = next(tiny_pipeline for tiny_pipeline in PIPELINES.values() if tiny_pipeline.family != tiny.family)
    own, theirs, elsewhere = tmp_path / "own", tmp_path / "theirs", other.folder(tmp_path_factory)
    save_teachers(str(folder), own, ("ocr",))
    save_teachers(str(elsewhere), theirs, ("ocr",))
    settings = [f"compute.resolution={tiny.side}", *tiny.more]
    spec = resolve("opd_analytic", ["ocr"], backbone=str(folder), overrides=settings, teachers=str(own))
    for passes in (own / "ocr", folder):
        check_teachers([spec.model_copy(update={"teachers": {"ocr": str(passes)}})])
    backbone, _ = loaded(folder, tiny)
    for foreign in (theirs / "ocr", elsewhere):
        with pytest.raises(UsageError) as refused:
            check_teachers([spec.model_copy(update={"teachers": {"ocr": str(foreign)}})])
        with pytest.raises(UsageError) as when_loaded:
            if foreign == elsewhere:
                backbone.load_model("other", network_folder(foreign))
            else:
                backbone.adapters.load("other", foreign)
        assert str(refused.value) == str(when_loaded.value)


@pytest.fixture(scope="module")
def run_of(folder: Path, tiny: Tiny, photo_scorers: dict, tmp_path_factory: pytest.TempPathFactory):
    """run_of(method, tasks) -> settings of a short run with tiny scorers and random teachers."""
    teachers = tmp_path_factory.mktemp("teachers")
    save_teachers(str(folder), teachers, TASKS)
    common = [
        f"compute.resolution={tiny.side}", *tiny.more, "evaluation.steps=2", "evaluation.split=validation", "evaluation.points=[]", "sampler.steps=2", "lora.rank=2", "lora.alpha=4",
        "ema.every=1", "checkpoint_every=1", "budget.updates=2",
    ]  # fmt: skip
    own = {
        "opd_analytic": ["params.trajectories=2", "params.timestep_fraction=1"],
        "multi_reward": ["params.groups=2", "params.group_size=2", "params.nft.timesteps=1"],
    }

    def settings(method: str, tasks: tuple[str, ...] = TASKS) -> list[str]:
        scorers = {name: photo_scorers[name] for name in (*tasks, "features")}
        named = [f"teachers.{task}={teachers / task}" for task in tasks] if method == "opd_analytic" else []
        return [*common, *own[method], *named, f"scorers={json.dumps(scorers)}"]

    return settings


@pytest.mark.slow
@one_each
@pytest.mark.parametrize("method", ["opd_analytic", "multi_reward"])
def test_a_run_from_end_to_end_and_again_after_a_kill(
    folder: Path, run_of, small, tmp_path: Path, monkeypatch, method: str
) -> None:
    method_class = find("method", method)
    spec = resolve(method, list(TASKS), backbone=str(folder), overrides=run_of(method))
    whole = execute(spec, Session(tmp_path / "whole" / "results"))
    assert {"official", "strict", "partial"} <= set(whole["models"]["student"]["geneval"]["rows"])
    predicted = method_class.predict(spec, describe(spec.backbone).sampler(spec))
    assert whole["cost"]["evaluations"]["training"] == 2 * predicted

    true = method_class.after_update

    def fail_second(self, lab) -> None:
        if lab.step == 1:
            raise BenchError("the power went")
        true(self, lab)

    session = Session(tmp_path / "cut" / "results")
    shutil.copytree(tmp_path / "whole" / "results" / "cache", session.root / "cache")  # base and teachers are the same
    with monkeypatch.context() as patch:
        patch.setattr(method_class, "after_update", fail_second)
        with pytest.raises(BenchError, match="the power went"):
            execute(spec, session)
    resumed = execute(spec, session)
    assert resumed["models"] == whole["models"]
    backbone = describe(spec.backbone).load("cpu", spec.compute)
    for name in ("whole", "cut"):
        backbone.adapters.load(name, tmp_path / name / "results" / whole["folder"] / "adapter")
    assert backbone.adapters.delta_norm("whole") > 0
    assert all(map(torch.equal, backbone.adapters.parameters("whole"), backbone.adapters.parameters("cut")))


@pytest.mark.slow
@one_each
def test_two_processes_do_what_one_does(folder: Path, run_of, tmp_path: Path) -> None:
    """On the tasks whose scorers are quick, from the command line."""
    words = ["run", "--method", "opd_analytic", "--backbone", str(folder), "--tasks", "ocr,pickscore"]
    settings = run_of("opd_analytic", ("ocr", "pickscore"))
    words += [part for s in [*settings, "device=cpu", "optimizer.eps=1", "optimizer.lr=0.1"] for part in ("--set", s)]
    found = []
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        for done in together(words, tmp_path / str(count), small_scorers, processes=count):
            assert done.returncode == 0, done.stderr
        (adapter,) = tmp_path.glob(f"{count}/results/runs/*/adapter")
        backbone = describe(str(folder)).load("cpu")
        backbone.adapters.load("trained", adapter)
        found.append(torch.cat([change.flatten() for change in backbone.adapters.deltas("trained").values()]))
    one, two = found
    assert one.norm() > 0 and (one - two).norm() < 1e-5 * one.norm()


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def write(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def encoders_of(folder: Path) -> list[str]:
    """Text encoders that the family of a pipeline cannot do without."""
    family = describe(str(folder)).check.args[0]
    return [name for name in family.encoders if name not in family.nullable]


def test_another_class_than_the_family_s_is_named(copied: Path, tiny: Tiny) -> None:
    encoder = encoders_of(copied)[0]
    vae = copied / "vae" / "config.json"
    kind = json.loads(vae.read_text())["_class_name"]
    write(vae, _class_name="AutoencoderTiny")
    with pytest.raises(UsageError, match=r"vae/config\.json names AutoencoderTiny as vae; family"):
        describe(str(copied))
    write(vae, _class_name=kind)
    write(copied / "model_index.json", **{encoder: ["transformers", "BertModel"]})
    with pytest.raises(UsageError, match=rf"model_index\.json names BertModel as {encoder}; family"):
        describe(str(copied))
    write(copied / "model_index.json", **{encoder: [None, None]})
    with pytest.raises(UsageError, match=f"names no {encoder}, without which family"):
        describe(str(copied))


def test_what_a_pipeline_lacks_is_named_before_a_run(copied: Path, tiny: Tiny) -> None:
    """Also text encoders, which are loaded last of all and not at all where the cache has every prompt."""
    family = describe(str(copied)).check.args[0]
    for part in (family.folder, "vae", *encoders_of(copied)):
        weights = next((copied / part).glob("*.safetensors"))
        away = weights.rename(weights.with_suffix(".away"))
        with pytest.raises(MissingError, match=rf"{part} has no {weights.name}"):
            loaded(copied, tiny)
        away.rename(weights)
    write(copied / "model_index.json", **{family.tokenizers[0]: None})
    with pytest.raises(UsageError, match=rf"has null as {family.tokenizers[0]}, where diffusers reads \[null, null\]"):
        describe(str(copied))


def test_a_configuration_that_describes_no_network_is_refused_when_it_is_counted(copied: Path, tiny: Tiny) -> None:
    """Whatever diffusers raises when it builds the network, or when the network is called."""
    family = describe(str(copied)).check.args[0]
    file = copied / family.folder / "config.json"
    right, said = file.read_text(), []
    unread = [name for name in json.loads(right) if name not in family.fields.model_fields and name[0] != "_"]
    for name in unread:
        write(file, **{name: [3] if isinstance(json.loads(right)[name], list) else "x"})
        overrides = [f"compute.resolution={tiny.side}", *tiny.more]
        spec = resolve("single_task", ["geneval"], backbone=str(copied), overrides=overrides)
        try:
            describe(str(copied)).size(spec.compute).training(1, Shape(4, 8), spec.compute)
        except UsageError as error:
            said.append(str(error))
        file.write_text(right)
    assert said and all("config.json" in line and "\n" not in line for line in said)


def test_a_teacher_is_trained_at_the_run_s_resolution(folder: Path, tiny: Tiny, monkeypatch) -> None:
    """Although the network may not be able to draw at its default one."""
    spec = resolve(
        "opd_analytic",
        ["geneval"],
        backbone=str(folder),
        teachers="train",
        overrides=[f"compute.resolution={tiny.side}", *tiny.more],
    )
    asked: list[int | None] = []
    descriptor = describe(str(folder))
    noted = replace(descriptor, check=lambda compute: asked.append(compute.resolution) or descriptor.check(compute))
    monkeypatch.setattr("bench.config.resolve.describe", lambda backbone: noted)
    assert teacher_spec(spec, "geneval").compute == spec.compute
    assert asked == [spec.compute.resolution]


def test_evaluations_have_a_resolution_of_their_own(folder: Path, tiny: Tiny) -> None:
    """Drawn as diffusers draws at that resolution; training's is as before."""
    larger = 2 * tiny.side if tiny.family != "sd3" else tiny.side // 2
    backbone, spec = loaded(folder, tiny, f"evaluation.resolution={larger}")
    own = backbone.latent_shape
    with backbone.at(spec.evaluation.resolution):
        ours, noise = drawn(backbone, spec), noise_of(backbone)
    assert backbone.latent_shape == own and noise.shape[-1] != own[-1] and ours.shape[-1] == larger
    theirs = replace(tiny, resolution=larger).draw(folder, PROMPTS, noise, STEPS, spec.evaluation.scale)
    assert torch.allclose(ours, theirs, atol=CLOSE)
    plain = loaded(folder, tiny)[1]
    assert spec.digest("") != plain.digest("")
    assert loaded(folder, tiny, f"evaluation.resolution={tiny.side}")[1].digest("") == plain.digest("")
    sizes = [describe(str(folder)).size(compute) for compute in (spec.compute, spec.evaluation_compute)]
    training, evaluation = (size.sampling(1, spec.compute).forward for size in sizes)
    assert (evaluation > training) == (larger > tiny.side)
    with pytest.raises(UsageError, match=r"evaluation\.resolution"):
        loaded(folder, tiny, f"evaluation.resolution={2 * tiny.side + 1}")


@pytest.mark.parametrize("tiny", [PIPELINES["z-image"]], ids=["z-image"])
def test_positions_that_the_network_does_not_know_are_refused(tiny: Tiny, tmp_path_factory) -> None:
    folder = tiny.folder(tmp_path_factory)
    with pytest.raises(UsageError, match="the network knows 32 rows and columns of patches, but an image would have 64"):
        resolve("single_task", ["geneval"], backbone=str(folder), overrides=["compute.resolution=256"])
    with pytest.raises(UsageError, match="the network knows 256 positions, too few for prompts of 512 tokens"):
        resolve("single_task", ["geneval"], backbone=str(folder), overrides=["compute.resolution=16"])


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"prediction": lambda self, config, output, x: output[:, :1]}, "returns a prediction"),
        ({"targets": ("attn.to_q", "attn.to_z")}, "names the target 'attn.to_z', which its network does not have"),
        ({"block_lists": ("blocks",)}, "names the blocks 'blocks', which its network does not have"),
        ({"prompt_shapes": lambda self, config, tokens: {"sequence": (tokens, 32)}}, "encodes pooled as"),
        ({"prompt_shapes": lambda self, config, tokens: {"sequence": (3, 32), "pooled": (32,)}}, "encodes sequence as"),
    ],
)
def test_a_family_s_mistakes_are_its_own(monkeypatch, tmp_path_factory, mistake: dict, said: str) -> None:
    for name, value in mistake.items():
        monkeypatch.setattr(Flux, name, value)
    tiny = PIPELINES["flux-dev"]
    with pytest.raises(MissingError, match=f"family 'flux' of .* {said}"):
        backbone, _ = loaded(tiny.folder(tmp_path_factory), tiny)
        backbone.velocity(noise_of(backbone), 0.5, backbone.encode(PROMPTS), None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"network": None}, "Incomplete lacks network"),
        ({"table": "foo"}, "has table 'foo', not"),
        ({"folder": "net"}, "has folder 'net', not one of transformer, unet"),
        ({"schedulers": ("DDIMScheduler",)}, r"DDIMScheduler, which are not of rectified flow \(set diffusion = True"),
        ({"diffusion": True, "schedulers": (EULER,)}, f"{EULER}, which are not of a diffusion model"),
    ],
)
def test_an_incomplete_family_is_named(wrong: dict, said: str) -> None:
    own = {name: getattr(Flux, name) for name in PipelineFamily.__annotations__}
    own |= {name: getattr(Flux, name) for name in PipelineFamily.__abstractmethods__} | wrong
    kept = {name: value for name, value in own.items() if value is not None or name == "resolution"}
    with pytest.raises(TypeError, match=said):
        family_of(type("Incomplete", (PipelineFamily,), kept)())


def changed(tiny: Tiny, factory, tmp_path: Path, file: str, **changes: object) -> Path:
    """A copy of a pipeline with changes in one of its files."""
    copy = Path(shutil.copytree(tiny.folder(factory), tmp_path / "changed"))
    write(copy / file, **changes)
    return copy


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prediction_type", "epsilon"), ("algorithm_type", "sde-dpmsolver++"), ("final_sigmas_type", "sigma_min"),
        ("thresholding", True), ("use_lu_lambdas", True), ("use_flow_sigmas", False), ("solver_type", "heun"),
    ],
)  # fmt: skip
def test_flow_solvers_are_followed_or_refused(tmp_path_factory, tmp_path: Path, option: str, value: object) -> None:
    folder = changed(PIPELINES["sana"], tmp_path_factory, tmp_path, SCHEDULER, **{option: value})
    with pytest.raises(UsageError, match=rf"scheduler_config\.json: {option} is"):
        describe(str(folder))


@pytest.mark.parametrize(
    "changes", [{"out_channels": 8}, {"num_class_embeds": 3}, {"dual_cross_attention": True}, {"time_cond_proj_dim": 8}]
)
def test_unets_with_further_inputs_or_outputs_are_refused(tmp_path_factory, tmp_path: Path, changes: dict) -> None:
    folder = changed(PIPELINES["sd15"], tmp_path_factory, tmp_path, "unet/config.json", **changes)
    said = "predicts 8 channels of latents with 4" if "out_channels" in changes else next(iter(changes))
    with pytest.raises(UsageError, match=said):
        resolve("single_task", ["geneval"], backbone=str(folder))


def test_a_teacher_that_predicts_something_else_is_refused(tmp_path_factory) -> None:
    """Both have the same network: only their schedulers tell them apart."""
    teacher = PIPELINES["sd-v"].folder(tmp_path_factory) / "unet"
    backbone, _ = loaded(PIPELINES["sd15"].folder(tmp_path_factory), PIPELINES["sd15"])
    with pytest.raises(UsageError, match="prediction_type is v_prediction, but the student's is epsilon"):
        backbone.load_model("teacher", teacher)


def test_a_teacher_of_another_kind_of_unet_is_named(tmp_path_factory) -> None:
    teacher = PIPELINES["sdxl"].folder(tmp_path_factory) / "unet"
    backbone, _ = loaded(PIPELINES["sd15"].folder(tmp_path_factory), PIPELINES["sd15"])
    with pytest.raises(UsageError, match=r"config\.json: addition_embed_type is 'text_time'"):
        backbone.load_model("teacher", teacher)


def test_pixart_s_former_class_is_its_own(tmp_path_factory, tmp_path: Path) -> None:
    tiny = PIPELINES["pixart-sigma"]
    folder = changed(tiny, tmp_path_factory, tmp_path, "transformer/config.json", _class_name="Transformer2DModel")
    write(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    backbone, spec = loaded(folder, tiny)
    theirs = tiny.draw(folder, PROMPTS, noise_of(backbone), STEPS, spec.evaluation.scale)
    assert torch.allclose(drawn(backbone, spec), theirs, atol=CLOSE)


def test_stable_diffusion_s_offset_is_1_whatever_its_file_says(tmp_path_factory, tmp_path: Path) -> None:
    tiny = PIPELINES["sd15"]
    folder = changed(tiny, tmp_path_factory, tmp_path, SCHEDULER, steps_offset=0)
    backbone, spec = loaded(folder, tiny)
    theirs = tiny.draw(folder, PROMPTS, noise_of(backbone), STEPS, spec.evaluation.scale)
    assert torch.allclose(drawn(backbone, spec), theirs, atol=CLOSE)


def test_a_unet_without_a_middle_has_other_blocks(tmp_path_factory) -> None:
    backbone, _ = loaded(PIPELINES["sd15"].folder(tmp_path_factory), PIPELINES["sd15"])
    count = len(backbone.blocks(backbone.transformer))
    backbone.transformer.mid_block = None
    assert len(backbone.blocks(backbone.transformer)) == count - 1


def test_settings_of_evaluations_are_checked_before_anything_is_trained(tmp_path_factory) -> None:
    folder = str(PIPELINES["sd15"].folder(tmp_path_factory))
    for said in ("evaluation.table=once", "evaluation.shift=3", "evaluation.steps=1000"):
        with pytest.raises(UsageError, match=r"table|shift|steps"):
            resolve("single_task", ["geneval"], backbone=folder, overrides=[said])


def test_a_network_without_checkpointing_is_not_asked_for_it(monkeypatch, tmp_path_factory) -> None:
    monkeypatch.setattr(Flux, "checkpoints", False)
    monkeypatch.setattr("bench.backbones.pipeline.describe.LARGE_BYTES", 0)
    tiny = PIPELINES["flux-dev"]
    folder = tiny.folder(tmp_path_factory)
    assert describe(str(folder)).defaults()["compute"]["gradient_checkpointing"] is False
    with pytest.raises(UsageError, match=r"has no gradient checkpointing in diffusers: set compute\.gradient_checkpoi"):
        loaded(folder, tiny, "compute.gradient_checkpointing=true")


def test_a_teacher_s_network_is_called_by_its_own_configuration(monkeypatch, tmp_path_factory, tmp_path: Path) -> None:
    """What a family reads there may differ from the student's, as a size of heads in rotary embeddings."""
    tiny = PIPELINES["sana"]
    folder = tiny.folder(tmp_path_factory)
    shutil.copytree(folder / "transformer", tmp_path / "teacher")
    write(tmp_path / "teacher" / "config.json", timestep_scale=0.5)
    backbone, _ = loaded(folder, tiny)
    backbone.load_model("teacher", tmp_path / "teacher")
    x, conditioning = noise_of(backbone), backbone.encode(PROMPTS)
    with torch.no_grad():
        teacher, own, half = (
            backbone.velocity(x, sigma, conditioning, name) for name, sigma in (("teacher", 0.8), (None, 0.8), (None, 0.4))
        )
    assert torch.equal(teacher, half) and not torch.equal(teacher, own)
