"""Settings that nobody can mean are refused in one line, before anything is allocated."""

import json
import resource
import time
from pathlib import Path

import pytest

from bench.backbones.sd3 import SD3
from bench.config.grid import overrides_of
from bench.config.resolve import preset_tasks, refuse_training, resolve
from bench.config.scorers import view_settings
from bench.config.settings import parse_override, parse_seeds, parse_yaml, read_yaml
from bench.errors import UsageError
from bench.jobs.placement import placement

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
REFUSED = {
    "optimizer.beta1=1": "optimizer.beta1: Input should be less than 1",
    "optimizer.beta2=1": "less than 1",
    "optimizer.lr=1e300": "less than or equal to 100",
    "optimizer.lr=nan": "optimizer.lr",
    "optimizer.lr=-1": "greater than 0",
    "optimizer.weight_decay=inf": "optimizer.weight_decay",
    "optimizer.clip=inf": "finite",
    "optimizer.eps=inf": "optimizer.eps",
    "sampler.shift=1e-300": "greater than or equal to 0.01",
    "sampler.shift=1e300": "less than or equal to 100",
    "sampler.steps=1000000000": "less than or equal to 1000",
    "sampler.guidance=1e9": "less than or equal to 1000",
    "sampler.guidance=inf": "sampler.guidance",
    "evaluation.steps=1000000000": "less than or equal to 1000",
    "evaluation.shift=0": "evaluation.shift",
    "evaluation.points=[2]": "evaluation.points.0",
    "lora.rank=1000000000": "less than or equal to 4096",
    "lora.alpha=inf": "lora.alpha",
    "lora.targets=[]": "lora.targets",
    "ema.decay=1": "ema.decay",
    "probes.interference=1000000000": "less than or equal to 10000",
    "params.trajectories=100000000000": "params.trajectories",
    "params.chunk=-1": "params.chunk",
    "params.anchor=inf": "params.anchor",
    "params.anchor=nan": "params.anchor",
    "params.anchor=1e300": "params.anchor: Input should be less than or equal to 1000000",
    "budget={}": "exactly one of budget",
    "budget=": "--set budget= is empty",
    "lora.start= ": "is empty: give a value",
    "budget=null": "'budget' is a section",
    "sampler=null": "'sampler' is a section of settings",
    "lora.start=''": "lora.start",
    "lora.start=nowhere": "lora.start: there is no adapter at nowhere",
    "lora.start=hub:x": "should be hub:OWNER/REPO",
    "lora.start=https://huggingface.co/a/b": "write a hub adapter as hub:a/b",
    "lora.targets=['']": "lora.targets: a layer's name is empty",
    "lora.targets=[attn.to_q, attn.to_q]": "lora.targets: a layer is named twice",
    "sampler.kernel=cps": "set sampler.eta",
    "sampler={kernel: flow_sde}": "set sampler.eta",
    "teachers=train": "teachers is a section of settings (teachers.TASK=...), not a value; --teachers",
    "teachers=null": "--teachers",
    "teachers=[train]": "--teachers",
    "teacher_guidance=3": "teacher_guidance is a section of settings",
    "teacher_guidance=null": "teacher_guidance is a section of settings",
    "device=gpu": "device: it should be cpu, cuda (a GPU) or cuda:NUMBER (got 'gpu')",
    "device=CPU": "it should be cpu",
    "device=!!str cpu": "a tag such as !!str is not allowed",
    "evaluation.split=TEST": "did you mean 'test'?",
    "budget.updates=!!int 5": "a tag such as !!int",
    "sampler=[]": "sampler",
    "sampler.kernel.name=x": "sampler.kernel",
    "params=3": "params",
    "params={a: {b: {c: 1}}}": "params.a",
    "lora..rank=3": "key=value",
    "=3": "key=value",
    "lora.rank": "key=value",
    "lora={rank: 4, rank: 8}": "'rank' is given twice",
    "lora=&a [*a]": "YAML",
    f"{'a.' * 300}b=1": "no setting is nested that deeply",
    f"params={'[' * 5000}": "YAML",
    "teachers.ocr.x=1": "teachers",
    "scorers.ocr.prompts=x": "scorers.ocr.prompts does nothing in the world 'micro'",
    "compute.max_sequence_length=64": "has a fixed prompt length",
    "compute.max_sequence_length=513": "less than or equal to 512",
    "probes.interference=2": "compares tasks, but the run has only one",
    "seed=3": "'seed' is set by its own option",
    "budget.updates=010": "plain decimal number, not text",
    "budget.updates=1:30": "budget.updates",
    "budget.updates=0x10": "budget.updates",
    "budget.updates=0b11": "budget.updates",
    "budget.updates=1_000": "plain decimal number, not text",
    "budget.updates=true": "budget.updates: Input should be a plain decimal number, not a truth value",
    "budget.updates='1'": "not text",
    "budget.updates=١٠": "budget.updates",
    "optimizer.lr=١": "optimizer.lr",
    "optimizer.lr=true": "not a truth value",
    "optimizer.lr='1e-3'": "not text",
    "evaluation.points=[0.5, true]": "evaluation.points",
    "evaluation.points=['0.5']": "not text",
    "teacher_guidance={ocr: true}": "teacher_guidance",
    "params.trajectories=true": "params.trajectories: Input should be a plain decimal number",
    "params.anchor=yes": "not a truth value",
    "compute.resolution=true": "not a truth value",
    "device=cuda:٣": "device",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_nobody_can_mean(setting: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(UsageError) as refused:
        resolve("opd_analytic", ["ocr"], overrides=[setting])
    assert REFUSED[setting] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert time.perf_counter() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("merge", "params.scale=1e300"),
        ("merge", "params.scale=1001"),
        ("opd_ppo", "params.clip=1e300"),
        ("dance_opd", "params.low_noise=1e300"),
        ("dance_opd", "params.high_noise=1e300"),
        ("multi_reward", "params.weights.ocr=1e300"),
        ("single_task", "params.nft.beta=1e300"),
        ("single_task", "params.nft.kl=1e300"),
        ("single_task", "params.nft.advantage_clip=1e300"),
        ("single_task", "params.grpo.clip=1e300"),
        ("single_task", "params.grpo_guard.kl=1e300"),
    ],
)
def test_options_of_methods_are_bounded(method: str, setting: str) -> None:
    with pytest.raises(UsageError, match=f"{setting.partition('=')[0]}.*less than or equal"):
        resolve(method, ["ocr"], overrides=[setting])


NO_GUIDANCE = ["-3", "true", "Infinity", "NaN", '"nan"', '"2.5"', "1" + "0" * 400, "[1]", "1001"]


@pytest.mark.parametrize("written", NO_GUIDANCE)
@pytest.mark.parametrize("name", ["training.json", "spec.json"])
def test_a_teacher_s_guidance_as_its_files_have_it_follows_the_setting_s_rule(
    tmp_path: Path, name: str, written: str
) -> None:
    folder = tmp_path / "ocr"
    folder.mkdir()
    if name == "training.json":
        path, content, field = folder / name, '{"guidance": %s}', "guidance"
    else:
        path, content, field = tmp_path / name, '{"spec": {"evaluation": {"guidance": %s}}}', "spec.evaluation.guidance"
    path.write_text(content % written, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{name}: {field} is .*not a valid guidance scale") as refused:
        resolve("opd_analytic", ["ocr"], overrides=[f"teachers.ocr={folder}"])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    path.write_text(content % "3", encoding="utf-8")
    assert resolve("opd_analytic", ["ocr"], overrides=[f"teachers.ocr={folder}"]).teacher_guidance == {"ocr": 3.0}


@pytest.mark.parametrize("setting", ["budget.updates=5", "optimizer.lr=1", "ema.decay=0.5", "probes.interference=2",
                                     "checkpoint_every=5", "sampler.kernel=cps", "sampler.steps=5", "sampler={eta: 0.1}"])  # fmt: skip
def test_settings_of_training_are_refused_where_nothing_is_trained(setting: str) -> None:
    with pytest.raises(UsageError, match=r"method 'merge' does not train, so .* does nothing"):
        refuse_training("merge", [setting])
    with pytest.raises(UsageError, match="does not train"):
        overrides_of("merge", ["merge", "sft"], [f"merge.{setting}"])
    assert overrides_of("merge", ["merge", "sft"], [setting]) == [setting]  # meant for the others
    refuse_training("sft", [setting])
    refuse_training("merge", ["sampler.guidance=2", "lora.rank=4", "evaluation.steps=2", "params.scale=2", "device=cuda"])


def test_a_noise_level_of_nothing_can_be_said() -> None:
    assert resolve("opd_analytic", ["ocr"], overrides=["sampler.kernel=cps", "sampler.eta=0"]).sampler.eta == 0
    assert resolve("opd_ppo", ["ocr"], overrides=["sampler.kernel=dance_sde"]).sampler.eta == 0.7  # the recipe's


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: 5", "method should be a name, not 5"),
        ("method: [a]", r"method should be a name, not \['a'\]"),
        ("method:", "method should be a name, not None"),
        ("backbone: 5", "backbone should be a name"),
        ("backbone: null", "backbone should be a name"),
        ("backbone: [micro]", "backbone should be a name"),
        ("tasks: [1]", "tasks should be a list of names, or all"),
        ("tasks: {ocr: 1}", "tasks should be a list of names, or all"),
        ("tasks: null", "tasks should be a list of names"),
        ("tasks: 'ocr,,geneval'", "tasks should be a list of names"),
        ("tasks: []", "the task list is empty"),
        ("tasks: ocrr", "unknown task 'ocrr'; did you mean 'ocr'"),
        ("tasks: [all, ocr]", "'all' cannot be combined"),
        ("teachers: train", "teachers is a section of settings"),
        ("teachers: null", "teachers is a section of settings"),
        ("teachers: [train]", "teachers is a section of settings"),
        ("teacher_guidance: 3", "teacher_guidance is a section of settings"),
        ("params: 3", "params"),
        ("budget: 3", "budget"),
        ("sampler: null", "sampler"),
        ("scorers: 3", "scorers is a section"),
        ("1: 2", "1"),
    ],
)
def test_presets_are_typed_before_they_are_used(tmp_path: Path, text: str, said: str) -> None:
    preset = tmp_path / "x.yaml"
    preset.write_text(text)
    with pytest.raises(UsageError, match=said) as refused:
        resolve(None if text.startswith("method") else "opd_analytic", None, preset=preset)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "tasks"),
    [
        ("ocr", ("ocr",)),
        ("ocr, geneval", ("ocr", "geneval")),
        ("[ocr]", ("ocr",)),
        ("all", ("geneval", "ocr", "pickscore")),
    ],
)
def test_tasks_of_a_preset_are_text_or_a_list(tmp_path: Path, text: str, tasks: tuple[str, ...]) -> None:
    preset = tmp_path / "x.yaml"
    preset.write_text(f"tasks: {text}\n")
    assert resolve("opd_analytic", None, preset=preset).tasks == tasks
    assert preset_tasks(preset, None) == list(tasks)


@pytest.mark.parametrize("backbone", ["hub:", "hub:x", "hub:/x", "hub:a/", "hub:a/b/c", "hub:a b/c"])
def test_addresses_of_backbones_are_looked_at(backbone: str) -> None:
    with pytest.raises(UsageError, match=r"should be hub:OWNER/REPO$"):
        resolve("opd_analytic", ["ocr"], backbone=backbone)


@pytest.mark.parametrize("method", ["single_task", "opd_analytic"])
def test_a_task_of_another_world_is_refused_before_anything_else(method: str) -> None:
    with pytest.raises(UsageError, match="unknown world for task clipscore 'micro'; known: photo"):
        resolve(method, ["clipscore"])


def test_pictures_and_noise_are_bounded_too() -> None:
    with pytest.raises(UsageError, match="exceeds 1,000,000 images per task and update"):
        resolve("single_task", ["ocr"], overrides=["params.groups=100000", "params.group_size=100000"])
    with pytest.raises(UsageError, match=r"sampler\.eta must be at most 100"):
        resolve("opd_ppo", ["ocr"], overrides=["sampler.kernel=flow_sde", "sampler.eta=1e300"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 10,000 values"),
        ("a: &a [*a]\n", "YAML|found|undefined|values|deep"),
        ("[" * 3000 + "]" * 3000, "nested more than 50 levels deep"),
        ("lora: {rank: 4}\nlora: {rank: 8}\n", "'lora' is given twice"),
        ("a: [1\n", "expected"),
        ("a: \x00", "special characters"),
        ("a: !!bool x", "a tag such as !!bool is not allowed: write the value without it"),
        ("a: !!timestamp x", "a tag such as !!timestamp"),
        ("a: !!int ''", "a tag such as !!int"),
        ("a: !!float ''", "a tag such as !!float"),
        ("a: !!set {x, y}", "a tag such as !!set"),
        ("a: !own [1]", "a tag such as !own"),
        ("a: ! 1", "a tag such as !"),
        ("!!map {a: 1}", "a tag such as !!map"),
        ("a: 2001-13-45", "month"),
    ],
)
def test_yaml_that_would_fill_the_memory_or_says_two_things(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        parse_yaml(text)
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"x\.yaml"):
        read_yaml(path)
    with pytest.raises(UsageError, match=r"x\.yaml"):
        placement("slurm", path, None)


def test_aliases_that_people_write_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffbase: &b {rank: 4}\nlora: *b\nname: café\n".encode())
    assert read_yaml(path) == {"base": {"rank": 4}, "lora": {"rank": 4}, "name": "café"}


@pytest.mark.parametrize(
    "text", ["0-9999999999", "99999999999999999999", "1-0", "0,0", "", "-1", "a", "0-", "²", "0-2-3"]
)
def test_seeds_that_nobody_can_mean(text: str) -> None:
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_seeds_and_overrides_that_people_write() -> None:
    assert parse_seeds("0-2, 5") == [0, 1, 2, 5]
    assert parse_override("optimizer.lr=1e-3") == {"optimizer": {"lr": 1e-3}}
    assert parse_override("params.order=[a, b]") == {"params": {"order": ["a", "b"]}}


@pytest.mark.parametrize(
    "url",
    ["http://ada:hidden@h:1", "ftp://ada:hidden@h", "ada:hidden@h", "http://h/?token=hidden", "http://a:hidden@h:x"],
)
def test_a_password_of_a_scorer_s_address_is_refused_and_not_repeated(url: str) -> None:
    for use in (
        lambda told: resolve("single_task", ["ocr"], overrides=told),
        lambda told: view_settings(told, ("ocr",), ("scorers",), "photo"),
    ):
        with pytest.raises(UsageError, match=r"^scorers\.ocr\.url takes") as refused:
            use([f"scorers.ocr.url={url}"])
        assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("-5", -5), ("+3", 3), ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("1.5e+3", 1500.0)],
)
def test_decimal_numbers_are_numbers(text: str, number: float) -> None:
    parsed = parse_yaml(f"[{text}]")
    assert parsed == [number] and type(parsed[0]) is type(number)


@pytest.mark.parametrize("text", ["010", "00", "01.5", "0x10", "0b1", "0o7", "1:30", "1:30.5", "1_000", "1_0.5", "١٠"])
def test_other_spellings_of_yaml_stay_text(text: str) -> None:
    assert parse_yaml(text) == text


def test_whole_numbers_and_lists_are_taken_where_they_are_meant() -> None:
    settings = ["optimizer.lr=1", "budget.nfe=1e6", "evaluation.points=[0.5, 1]", "lora.targets=[attn.to_q]"]
    spec = resolve("opd_analytic", ["ocr"], overrides=settings)
    assert spec.optimizer.lr == 1.0 and spec.budget.nfe == 1_000_000
    assert spec.evaluation.points == (0.5, 1.0) and spec.lora.targets == ("attn.to_q",)


OWN = {
    "prompt length": ("sd3", ["compute.max_sequence_length=128"], []),
    "resolution": ("sd3", ["compute.resolution=1024"], ["compute.resolution=null"]),
    "targets": ("sd3", [f"lora.targets=[{', '.join(SD3.targets)}]"], []),
    "targets in another order": ("micro", [f"lora.targets=[{', '.join(reversed(SD3.targets))}]"], []),
    "shift": ("micro", ["sampler.shift=3"], []),
    "shift of evaluation": ("micro", ["evaluation.shift=3.0"], []),
    "both shifts": ("sd3", ["sampler.shift=3", "evaluation.shift=3"], []),
    "shift of evaluation as in training": ("micro", ["sampler.shift=2", "evaluation.shift=2"], ["sampler.shift=2"]),
    "table": ("micro", ["evaluation.table=diffusers"], []),
    "table as in training": ("micro", ["sampler.table=once", "evaluation.table=once"], ["sampler.table=once"]),
    "a section without use at its default": ("sd3", ["params.grpo.clip=1e-4"], []),
    "as the recipe has it": ("micro", ["params.engine=grpo", "params.nft.kl=0.1"], ["params.engine=grpo"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_saying_what_holds_anyway_gives_a_run_no_other_name(name: str) -> None:
    backbone, said, unsaid = OWN[name]
    resolved = lambda overrides: resolve("single_task", ["geneval"], backbone=backbone, overrides=overrides)
    assert resolved(said) == resolved(unsaid)


@pytest.mark.parametrize(
    "said", ["sampler.shift=2", "evaluation.shift=2", "evaluation.table=once", "lora.targets=[attn.to_q]"]
)
def test_what_is_said_otherwise_does(said: str) -> None:
    digest = lambda overrides: resolve("single_task", ["geneval"], overrides=overrides).digest("x")
    assert digest([said]) != digest([])
    assert digest([said, "sampler.shift=2", "evaluation.shift=3"]) != digest([said, "sampler.shift=2"])


@pytest.mark.parametrize("said", ["evaluation.shift=3", "evaluation.table=diffusers"])
def test_evaluation_as_the_backbone_has_it_stays_where_training_differs(said: str, tmp_path: Path) -> None:
    spec = resolve("single_task", ["geneval"], overrides=["sampler.shift=2", "sampler.table=once", said])
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"spec": spec.record(), "backbone_hash": "x"}))
    assert resolve(None, None, preset=path) == spec
    assert (spec.evaluation.shift, spec.evaluation.table) == ((3, "once") if "shift" in said else (2, "diffusers"))


@pytest.mark.parametrize(
    ("engine", "setting"),
    [("nft", "params.grpo.clip=0.5"), ("nft", "params.grpo.log_prob=squared_error"), ("grpo", "params.nft.beta=0.5"),
     ("grpo", "params.nft.kl=1e-4"), ("grpo_guard", "params.grpo.chunk=3")],
)  # fmt: skip
@pytest.mark.parametrize("method", ["single_task", "cascade"])
def test_a_setting_of_an_engine_that_is_not_chosen_is_refused(method: str, engine: str, setting: str) -> None:
    """On micro, whose recipe says params.nft.kl 0.1: 1e-4, the engine's own default, is then a change too."""
    name = setting.partition("=")[0]
    with pytest.raises(UsageError, match=f"^{name} does nothing because params.engine is {engine}: leave it out$"):
        resolve(method, ["geneval"], overrides=[f"params.engine={engine}", setting])


def test_a_preset_may_hold_sections_of_other_engines(tmp_path: Path) -> None:
    """A run's spec.json holds all of them; another engine is then chosen on the command line."""
    made = resolve("single_task", ["geneval"], overrides=["params.nft.beta=0.5"])
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"spec": made.record(), "backbone_hash": "x"}))
    noisy = ["params.engine=grpo", "sampler.kernel=cps", "sampler.eta=0.7"]
    assert resolve(None, None, preset=path, overrides=noisy).params["nft"]["beta"] == 0.5
    with pytest.raises(UsageError, match=r"params\.nft\.beta does nothing"):
        resolve(None, None, preset=path, overrides=[*noisy, "params.nft.beta=0.7"])


def test_unknown_keys_name_the_nearest_in_any_section(tmp_path: Path) -> None:
    for setting, near in {
        "lora.rnk=3": "lora.rank",
        "params.chnk=3": "params.chunk",
        "samplr.steps=3": "sampler",
    }.items():
        with pytest.raises(UsageError, match=f"did you mean '{near}'"):
            resolve("opd_analytic", ["ocr"], overrides=[setting])
    with pytest.raises(UsageError, match=r"params\.nft\.bta"):
        resolve("multi_reward", ["ocr"], overrides=["params.nft.bta=1"])
