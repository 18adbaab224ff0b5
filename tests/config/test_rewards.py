"""The section `rewards`: what is completed, what is refused before anything is loaded, and what names a run."""

import pytest

from bench.config.grid import recipes, variants
from bench.config.resolve import resolve, teacher_spec
from bench.errors import UsageError
from bench.training.out_of_memory import scorers as advice
from tasks.preference.judges import JUDGES

pytestmark = pytest.mark.usefixtures("tiny_tasks")


def spec(*sets: str, tasks: tuple[str, ...] = ("red",), method: str = "single_task"):
    return resolve(method, [*tasks], overrides=[*sets])


def test_the_own_reward_has_weight_one_and_comes_first() -> None:
    plain, own = spec("rewards.red.dark=0.5"), spec("rewards.red.dark=0.5", "rewards.red.red=1")
    assert list(plain.rewards["red"].items()) == [("red", 1.0), ("dark", 0.5)]
    assert own.digest("f") == plain.digest("f")
    names = {
        spec(*sets).digest("f")
        for sets in ([], ["rewards.red.dark=0.5"], ["rewards.red.dark=1"], ["rewards.red.dark=1", "rewards.red.red=2"])
    }
    assert len(names) == 4
    assert "rewards" not in spec().record()
    assert plain.record()["rewards"] == {"red": {"red": 1.0, "dark": 0.5}}


@pytest.mark.parametrize(
    ("sets", "tasks", "said"),
    [
        (["rewards.rad.dark=1"], ["red"], "unknown task in rewards 'rad'; did you mean 'red'"),
        (["rewards.dark.red=1"], ["red"], "unknown task in rewards 'dark'"),
        (["rewards.red.drak=1"], ["red"], "unknown task 'drak'; did you mean 'dark'"),
        (["rewards.red.red=2"], ["red"], "rewards.red adds no scorer"),
        (["rewards.red.dark=0"], ["red"], "rewards.red.dark: Input should be greater than 0"),
        (["rewards.red=3"], ["red"], "rewards.red: Input should be a valid dictionary"),
        (["rewards=3"], ["red"], "rewards: Input should be a valid dictionary"),
        (["rewards.red.picky=1"], ["red"], "rewards.red.picky: picky cannot score the prompt .* of red: its metadata"),
        (["rewards.ocr.geneval=1"], ["ocr"], "rewards.ocr.geneval: geneval cannot score the prompt .* of ocr: "),
        (["rewards.ocr.pickscore=1"], ["ocr"], "rewards.ocr.pickscore: pickscore cannot score the prompt"),
        (["rewards.red.clipscore=1"], ["red"], "unknown world for task clipscore 'micro'"),
        (["scorers.dark.url=http://localhost:1"], ["red"], "unknown task in scorers 'dark'"),
        (["rewards.red.dark=1", "scorers.dark.prompts=here"], ["red"], "scorers.dark.prompts does nothing"),
    ],
)  # fmt: skip
def test_what_is_refused(sets: list[str], tasks: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        spec(*sets, tasks=tuple(tasks))
    assert "\n" not in str(refused.value)


def test_a_further_scorer_takes_settings() -> None:
    found = spec("rewards.red.dark=1", "scorers.dark.url=http://localhost:1")
    assert found.scorers == {"dark": {"url": "http://localhost:1"}}
    both = spec("rewards.red.dark=1", "scorers.dark.prompts=here", tasks=("red", "dark"), method="multi_reward")
    assert both.scorers["dark"] == {"prompts": "here"}  # dark's prompts are used: it is a task too


def test_a_trained_teacher_has_its_tasks_rewards() -> None:
    student = resolve(
        "opd_analytic", ["red", "ocr"], teachers="train",
        overrides=["rewards.red.dark=2", "scorers.dark.url=http://localhost:1"],
    )  # fmt: skip
    teacher = teacher_spec(student, "red")
    assert (teacher.rewards, teacher.scorers) == ({"red": {"red": 1.0, "dark": 2.0}}, student.scorers)
    assert (teacher_spec(student, "ocr").rewards, teacher_spec(student, "ocr").scorers) == ({}, {})


def test_a_grid_varies_a_weight() -> None:
    specs = recipes(["single_task"], ["red"], "micro")
    found = [variant.overrides for variant in variants(["rewards.red.dark=0.5,1"], specs)]
    assert found == [("rewards.red.dark=0.5",), ("rewards.red.dark=1",)]


def test_memory_advice_names_the_further_scorers(sd3_folder) -> None:
    found = resolve("single_task", ["ocr"], backbone=str(sd3_folder), overrides=["rewards.ocr.clipscore=1"])
    assert {"scorers.ocr.url to score elsewhere", "a lower scorers.clipscore.batch"} <= set(advice(found))


def test_every_preference_score_can_be_a_further_reward(sd3_folder) -> None:
    spec = resolve("single_task", ["ocr"], backbone=str(sd3_folder), overrides=[f"rewards.ocr.{name}=1" for name in JUDGES])
    assert set(JUDGES) <= set(spec.rewards["ocr"])
