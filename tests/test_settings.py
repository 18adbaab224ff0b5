"""Settings that nobody can mean are refused in one line, before anything is allocated."""

import resource
import time
from pathlib import Path

import pytest

from bench.errors import UsageError
from bench.placement import placement
from bench.settings import parse_override, parse_seeds, parse_yaml, read_yaml
from bench.spec import resolve

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
    "budget={}": "exactly one of budget",
    "budget=": "'budget' is a section",
    "sampler=": "'sampler' is a section of settings",
    "sampler=[]": "sampler",
    "sampler.kernel.name=x": "sampler.kernel",
    "params=3": "params",
    "params={a: {b: {c: 1}}}": "params.a",
    "lora..rank=3": "key=value",
    "=3": "key=value",
    "lora.rank": "key=value",
    "lora={rank: 4, rank: 8}": "'rank' is said twice",
    "lora=&a [*a]": "YAML",
    f"{'a.' * 300}b=1": "no setting lies that deep",
    f"params={'[' * 5000}": "YAML",
    "teachers.ocr.x=1": "teachers",
    "scorers.ocr.prompts=x": "scorers.ocr.prompts does nothing in the world 'micro'",
    "compute.max_sequence_length=64": "reads whole prompts",
    "compute.max_sequence_length=513": "less than or equal to 512",
    "probes.interference=2": "compares tasks, and the run has one",
    "seed=3": "'seed' is set by its own flag",
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


def test_pictures_and_noise_are_bounded_too() -> None:
    with pytest.raises(UsageError, match="more than 1,000,000 pictures"):
        resolve("single_task", ["ocr"], overrides=["params.groups=100000", "params.group_size=100000"])
    with pytest.raises(UsageError, match=r"sampler\.eta must be at most 100"):
        resolve("opd_ppo", ["ocr"], overrides=["sampler.kernel=flow_sde", "sampler.eta=1e300"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 10,000 values"),
        ("a: &a [*a]\n", "YAML|found|undefined|values|deep"),
        ("[" * 3000 + "]" * 3000, "deep in one another"),
        ("lora: {rank: 4}\nlora: {rank: 8}\n", "'lora' is said twice"),
        ("a: [1\n", "expected"),
        ("a: \x00", "special characters"),
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
