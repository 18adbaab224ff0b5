"""compute.negative_prompt: where it has no effect or cannot be used it is refused, and it changes what guidance does."""

import pytest
import torch

from bench.config.compute import Compute
from bench.config.resolve import describe, resolve, teacher_spec
from bench.errors import UsageError

GUIDED = ["sampler.guidance=2.5", "compute.negative_prompt=two circles"]


def test_guidance_goes_away_from_it() -> None:
    """By hand: v(negative) + w (v(prompt) - v(negative)); without guidance it is not used."""
    plain, away = (describe("micro").load("cpu", Compute(negative_prompt=words)) for words in ("", "two circles"))
    x = plain.noise(1, torch.Generator().manual_seed(0))
    prompt, negative = (plain.encode([words]) for words in ("a photo of a star", "two circles"))
    with torch.no_grad():
        v, v_negative = (plain.velocity(x, 0.5, words, None) for words in (prompt, negative))
        assert torch.allclose(away.velocity(x, 0.5, prompt, None, 2.5), v_negative + 2.5 * (v - v_negative), atol=1e-5)
        assert torch.equal(away.velocity(x, 0.5, prompt, None), v)
        assert not torch.allclose(away.velocity(x, 0.5, prompt, None, 2.5), plain.velocity(x, 0.5, prompt, None, 2.5))


def test_it_is_part_of_a_run_s_name() -> None:
    spec = resolve("opd_analytic", ["ocr"], overrides=GUIDED, teachers="train")
    plain = resolve("opd_analytic", ["ocr"], overrides=GUIDED[:1], teachers="train")
    assert spec.digest("") != plain.digest("")
    assert "negative_prompt" not in plain.record().get("compute", {})


def test_a_teacher_without_guidance_is_the_same_teacher() -> None:
    """Or it would be trained again."""
    own = ["teacher_guidance.ocr=2.5"]
    with_it, without = (
        resolve("opd_analytic", ["ocr"], overrides=[*more, *own], teachers="train") for more in (GUIDED, GUIDED[:1])
    )
    assert with_it.digest("") != without.digest("")
    teachers = [teacher_spec(spec, "ocr") for spec in (with_it, without)]
    guided = teachers[0].sampler.guidance != 1 or teachers[0].evaluation.guidance != 1
    assert (teachers[0].digest("") == teachers[1].digest("")) != guided


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (GUIDED[1:], "compute.negative_prompt has no effect at guidance scale 1"),
        ([GUIDED[0], "compute.negative_prompt=two circls"], "'circls' is not in the micro world's vocabulary"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(overrides: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        resolve("multi_reward", ["ocr", "geneval"], overrides=overrides)


def test_a_method_that_guides_by_itself_may_use_it() -> None:
    spec = resolve("multi_reward", ["ocr", "geneval"], overrides=[GUIDED[1], "params.engine=crd"])
    assert spec.params["crd"]["reference_guidance"] != 1
