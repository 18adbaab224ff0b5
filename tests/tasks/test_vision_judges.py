"""Vision-language judges: one that runs here against plain transformers, one behind an endpoint, and what can go wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.api.task import Prompt
from bench.errors import BenchError, MissingError, UsageError
from bench.scoring import client
from bench.scoring.pictures import to_bytes
from tasks.preference.drawbench import DrawBench
from tasks.preference.task import Quality, VqaScore
from tasks.vision.endpoint import EndpointJudge
from tasks.vision.judge import Question
from tasks.vision.loading import vision_judge
from tasks.vision.local import LocalJudge
from tests.once import once
from tests.tiny_judges import Asked, Endpoint, letters, llava

YES = ("Yes", "yes", " Yes", " yes")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "llava", llava)


@pytest.fixture
def serving() -> Iterator:
    """serving(endpoint) -> its address."""
    started: list[Endpoint] = []

    def serve(endpoint: Endpoint) -> str:
        started.append(endpoint)
        return endpoint.start()

    yield serve
    for endpoint in started:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def plain(folder: Path, image: torch.Tensor, text: str, system: str = "") -> tuple[Any, Any, Any]:
    """Model, tokenizer and inputs of one question, put together without a chat template."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, processor = LlavaForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    before = f"[system]{system}" if system else ""
    picture = Image.fromarray(to_bytes(image[None])[0])
    inputs = processor(text=f"{before}[user]<image>{text}[assistant]", images=picture, return_tensors="pt")
    return model, processor.tokenizer, inputs


def test_a_judge_here_gives_the_probabilities_and_texts_of_plain_transformers(llava_folder, images) -> None:
    judge = LocalJudge(str(llava_folder), {"batch": "2"})
    asked = [
        Question(0, "Is it red?", YES),
        Question(2, "What does this picture show?", length=6),
        Question(1, "Is there a cat, and a dog behind it?", ("no",), system="You are strict."),
        Question(1, "Why?", length=6),
        Question(2, "Is it red?", YES),
    ]
    replies = judge.reply(images, asked)
    assert judge.name.startswith("llava-") and not judge.elsewhere
    for question, reply in zip(asked, replies):
        model, tokenizer, inputs = plain(llava_folder, images[question.image], question.text, question.system)
        with torch.no_grad():
            if question.words:
                probabilities = model(**inputs).logits[0, -1].softmax(-1)
                expected = [float(probabilities[tokenizer.encode(word, add_special_tokens=False)[0]]) for word in question.words]
                # " Yes" and " yes" start with the same byte, the space, which counts once.
                expected = [p if p not in expected[:i] else 0.0 for i, p in enumerate(expected)]
                np.testing.assert_allclose(reply.probabilities, expected, rtol=1e-4, atol=1e-9)
                assert not reply.text
            else:
                written = model.generate(**inputs, max_new_tokens=question.length, do_sample=False)
                assert reply.text == tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert replies[0].probabilities[3] == 0 < replies[0].probabilities[2]
    # The image and the words matter: other ones get other replies.
    assert not np.allclose(replies[0].probabilities, replies[4].probabilities, rtol=1e-3)


def test_batches_do_not_change_what_a_judge_says(llava_folder, images) -> None:
    asked = [Question(i % 3, "Is it red" + "?" * (1 + 3 * i), YES) for i in range(5)]
    one, five = (LocalJudge(str(llava_folder), {"batch": str(n)}).reply(images, asked) for n in (1, 5))
    for a, b in zip(one, five):
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-4)


def test_qwens_judge_is_asked_with_its_own_image_tokens(tmp_path: Path, images) -> None:
    """The published judges are Qwen-VLs. Their processors need torchvision for videos; images are the same without."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.manual_seed(0)
    special = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = letters(*special)
    ids = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), tokenizer.convert_tokens_to_ids(special)))
    text = dict(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **ids,
    )  # fmt: skip
    sight = dict(depth=1, embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=1, patch_size=4, spatial_merge_size=2)
    config = Qwen2VLConfig(text_config=text, vision_config=sight, **ids)
    Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path)
    processor = Qwen2VLProcessor.__new__(Qwen2VLProcessor)
    processor.image_processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    processor.tokenizer, processor.video_processor = tokenizer, None
    processor.image_token, processor.video_token = special[:2]
    processor.image_token_id, processor.video_token_id = tokenizer.convert_tokens_to_ids(special[:2])
    processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|>"
        "<|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}:"
    )
    judge = LocalJudge(str(tmp_path), {})
    processor.tokenizer.padding_side = "left"
    judge.processor = processor
    asked = [Question(0, "Is it red?", YES), Question(1, "Or is it rather green and blue?", YES), Question(2, "Why?", length=3)]
    replies = judge.reply(images, asked)
    for question, reply in zip(asked[:2], replies):
        alone = judge.reply(images[question.image][None], [Question(0, question.text, YES)])[0]
        np.testing.assert_allclose(reply.probabilities, alone.probabilities, rtol=1e-4)
    assert isinstance(replies[2].text, str) and judge.name.startswith("qwen2_vl-")


def test_weights_in_several_files_have_a_name_too(llava_folder, tmp_path: Path) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from bench.weights.frozen import weights_hash

    model = LlavaForConditionalGeneration.from_pretrained(llava_folder)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    AutoProcessor.from_pretrained(llava_folder).save_pretrained(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1
    image, asked = torch.zeros(1, 3, 8, 8), [Question(0, "Is it?", YES)]
    judge = LocalJudge(str(tmp_path / "a"), {})
    pair = (judge.reply(image, asked)[0], LocalJudge(str(llava_folder), {}).reply(image, asked)[0])
    np.testing.assert_allclose(pair[0].probabilities, pair[1].probabilities, rtol=1e-5)
    names = {judge.name}
    next(iter(model.parameters())).data.view(-1)[0] += 1
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    AutoProcessor.from_pretrained(llava_folder).save_pretrained(tmp_path / "b")
    weights_hash.cache_clear()
    names.add(LocalJudge(str(tmp_path / "b"), {}).name)
    assert len(names) == 2
    next((tmp_path / "b").glob("model-00002-*")).unlink()
    weights_hash.cache_clear()
    with pytest.raises(MissingError, match="model-00002"):
        _ = LocalJudge(str(tmp_path / "b"), {}).name


def test_what_cannot_judge_here_is_refused(llava_folder, clip_folder, tmp_path: Path, images) -> None:
    with pytest.raises(UsageError, match="not a vision-language model: transformers has no image-text-to-text model of type 'clip'"):
        _ = LocalJudge(str(clip_folder), {}).name
    with pytest.raises(MissingError, match="no vision-language model at 'Qwen/Qwen3-VL-8B-Instruct'"):
        _ = LocalJudge("Qwen/Qwen3-VL-8B-Instruct", {}).name
    llava(tmp_path, template="")
    with pytest.raises(UsageError, match="no chat template"):
        LocalJudge(str(tmp_path), {}).reply(images, [Question(0, "Is it?")])
    with pytest.raises(UsageError, match=r"scorers\.vqascore.model does nothing for a judge that runs here"):
        vision_judge("vqascore", {"judge": str(llava_folder), "model": "gpt"}, False)
    with pytest.raises(UsageError, match=r"scorers\.vqascore.precision does nothing for a judge behind an endpoint"):
        vision_judge("vqascore", {"judge": "http://127.0.0.1:9/v1", "precision": "float16"}, False)
    with pytest.raises(MissingError, match=r"set scorers\.vqascore.judge \(vision-language model"):
        vision_judge("vqascore", {}, False)


def brightness(asked: Asked) -> str:
    return f"{float(asked.image.mean()):.2f} {asked.system}{asked.text}"


def test_an_endpoint_is_asked_in_openais_words_and_its_replies_keep_their_order(serving, images) -> None:
    endpoint = Endpoint(brightness)
    judge = vision_judge("dpg", {"judge": serving(endpoint), "requests": "5"}, False)
    assert judge.elsewhere and judge.name == "endpoint-tiny-judge-2026-11-01"
    asked = [Question(i % 3, f"question {i}", length=7, system="Be short. " if i % 2 else "") for i in range(20)]
    replies = judge.reply(images, asked)
    for question, reply in zip(asked, replies):
        assert reply.text == f"{float((images[question.image] * 255).round().mean() / 255):.2f} {question.system}{question.text}"
    sent = endpoint.asked[-1].request
    assert sent["temperature"] == 0 and sent["max_tokens"] == 7 and sent["model"] == "tiny-judge" and "logprobs" not in sent
    assert torch.equal(endpoint.asked[0].image * 255, (endpoint.asked[0].image * 255).round())  # a PNG: nothing is lost


def test_an_endpoints_probabilities_are_those_of_its_first_tokens(serving, images) -> None:
    endpoint = Endpoint(lambda asked: {"Yes": 0.5, " yes": 0.25, "No": 0.2, "yes": 0.0})
    judge = vision_judge("vqascore", {"judge": serving(endpoint)}, True)
    assert judge.reply(images, [Question(0, "Is it?", YES)])[0].probabilities == pytest.approx([0.5, 0, 0, 0.25])
    sent = endpoint.asked[-1].request
    assert sent["logprobs"] is True and sent["top_logprobs"] == 20 and sent["max_tokens"] == 1
    with pytest.raises(UsageError, match="gives no probabilities of tokens"):
        _ = vision_judge("vqascore", {"judge": serving(Endpoint(brightness, greets=False))}, True).name
    assert vision_judge("dpg", {"judge": serving(Endpoint(brightness, greets=False))}, False).name  # texts are enough for others


def test_an_endpoints_key_comes_from_the_environment_and_stays_there(serving, images, monkeypatch) -> None:
    secret = "sk-very-secret-0123456789"
    endpoint = Endpoint(brightness, key=secret)
    url = serving(endpoint)
    with pytest.raises(MissingError, match=r"401.*Incorrect API key.*set scorers.dpg.key to the environment variable"):
        _ = vision_judge("dpg", {"judge": url}, False).name
    with pytest.raises(MissingError, match=r"environment variable JUDGE_KEY, which scorers.dpg.key names, is not set"):
        vision_judge("dpg", {"judge": url, "key": "JUDGE_KEY"}, False)
    monkeypatch.setenv("JUDGE_KEY", secret)
    judge = vision_judge("dpg", {"judge": url, "key": "JUDGE_KEY"}, False)
    assert judge.reply(images, [Question(0, "a")])[0].text and secret not in judge.name
    for broken in ("sk-secret-1\nX-Y: z", "sk-secret-…", "short"):
        monkeypatch.setenv("JUDGE_KEY", broken)
        with pytest.raises(UsageError, match="JUDGE_KEY holds no API key") as refused:
            vision_judge("dpg", {"judge": url, "key": "JUDGE_KEY"}, False)
        assert "sk-" not in str(refused.value)
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with pytest.raises(MissingError) as refused:
        _ = vision_judge("dpg", {"judge": url, "key": "JUDGE_KEY"}, False).name
    assert "sk-wrong" not in str(refused.value)


def test_an_endpoints_models_are_named(serving) -> None:
    several = serving(Endpoint(brightness, models=["judge-large", "judge-small"]))
    with pytest.raises(UsageError, match=r"set scorers.dpg.model to the judge's name at .*: one of judge-large, judge-small"):
        _ = vision_judge("dpg", {"judge": several}, False).name
    with pytest.raises(UsageError, match="did you mean 'judge-small'"):
        _ = vision_judge("dpg", {"judge": several, "model": "judge-smal"}, False).name
    unlisted = serving(Endpoint(brightness, models=[]))
    with pytest.raises(UsageError, match="which lists no models"):
        _ = vision_judge("dpg", {"judge": unlisted}, False).name
    assert vision_judge("dpg", {"judge": unlisted, "model": "gpt-4o"}, False).name == "endpoint-tiny-judge-2026-11-01"
    with pytest.raises(MissingError, match=r"start the model's server, or correct scorers.dpg.judge"):
        _ = vision_judge("dpg", {"judge": "http://127.0.0.1:9/v1"}, False).name
    with pytest.raises(UsageError, match=r"scorers\.dpg.judge takes an http address"):
        vision_judge("dpg", {"judge": "http://nowhere:port/v1"}, False)
    with pytest.raises(UsageError, match=r"address of an endpoint starts with http://, not 'localhost:8000/v1'"):
        vision_judge("dpg", {"judge": "localhost:8000/v1"}, False)
    odd = Endpoint(brightness, models=[None, 3, {"a": 1}, "judge"])
    assert vision_judge("dpg", {"judge": serving(odd)}, False).name == "endpoint-tiny-judge-2026-11-01"
    with pytest.raises(UsageError, match=r"scorers\.dpg.requests is a number"):
        EndpointJudge("dpg", several, {"requests": "many"}, False)


def test_an_image_that_an_endpoint_refuses_has_no_score_and_the_others_have(serving, images) -> None:
    def answer(asked: Asked) -> Any:
        if asked.image.mean() > 0.9:
            return 400, json.dumps({"error": {"message": "content policy"}})
        return {"Yes": 0.75, "No": 0.25}

    images[1] = 1.0
    task = VqaScore("photo", {"judge": serving(Endpoint(answer))})
    scores = task.score(images, [Prompt(f"cat {i}") for i in range(3)])
    np.testing.assert_allclose(scores.rewards, [0.75, np.nan, 0.75])
    assert task.scorer_name.startswith("vqascore-1+vqascore-asked-") and task.scorer_name.endswith("+endpoint-tiny-judge-2026-11-01")
    assert task.elsewhere and not task.differentiable
    with pytest.raises(UsageError, match="no gradient"):
        task.differentiable_reward(images, [Prompt("cat")] * 3)


def test_vqascore_and_quality_are_made_of_probabilities(serving, images, tmp_path: Path) -> None:
    asked: list[Asked] = []

    def answer(question: Asked) -> dict[str, float]:
        asked.append(question)
        if "quality" in question.text:
            return {"excellent": 0.1, "Good": 0.3, "fair": 0.05, "bad": 0.05, "It": 0.5}
        return {"Yes": 0.3, "yes": 0.2, "No": 0.4}

    url = serving(Endpoint(answer))
    prompts = [Prompt('a {red} "sign"')] * 3
    assert VqaScore("photo", {"judge": url}).score(images, prompts).metrics["vqascore"] == pytest.approx(0.5)
    assert asked[-1].text == 'Does this figure show "a {red} "sign""? Please answer yes or no.'
    scores = Quality("photo", {"judge": url}).score(images, prompts)
    level = (5 * 0.1 + 4 * 0.3 + 3 * 0.05 + 1 * 0.05) / 0.5
    assert scores.metrics["quality"] == pytest.approx(level)
    assert scores.rewards == pytest.approx(level / 5)
    (tmp_path / "test.txt").write_text("a cat\n")
    both = DrawBench("photo", {
        "prompts": str(tmp_path / "test.txt"), "judges": "vqascore,quality", "vqascore_judge": url, "quality_judge": url,
    })  # fmt: skip
    assert both.score(images, prompts).rewards == pytest.approx((0.5 + level / 5) / 2)
    assert both.scorer_name.count("endpoint-tiny-judge-2026-11-01") == 2


@pytest.mark.parametrize("answer", [(500, "no: {}"), (400, "bad {}"), (401, "wrong {}"), (302, "{}"), "I was told {}"])
def test_a_key_that_an_endpoint_repeats_is_in_no_message_and_no_reply(answer, serving, images, monkeypatch) -> None:
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("JUDGE_KEY", secret)
    monkeypatch.setattr(client, "PAUSES_S", (0,))
    said = (answer[0], answer[1].format(secret)) if isinstance(answer, tuple) else answer.format(secret)
    judge = vision_judge("dpg", {"judge": serving(Endpoint(lambda _: said, key=secret, served=f"judge {secret}")), "key": "JUDGE_KEY"}, False)
    try:
        text = str(judge.reply(images, [Question(0, "a")]))
    except BenchError as error:
        text = str(error)
    assert secret not in text + judge.name and "***" in judge.name


@pytest.mark.parametrize(
    "first",
    [{}, {"token_id:9454": 0.9}, {"Okay": 0.9}, {"yes": 0.05}, "<think>\nOkay, the"],
)  # fmt: skip
def test_an_endpoint_that_cannot_say_yes_is_refused_before_it_judges(first, serving) -> None:
    judge = vision_judge("vqascore", {"judge": serving(Endpoint(brightness, greeting=first))}, isinstance(first, dict))
    with pytest.raises(UsageError, match=r"no most probable tokens|told to answer with the word yes, it"):
        _ = judge.name


@pytest.mark.parametrize("logprob", [float("nan"), 0.7, True, 1000, None, "-1"])
def test_probabilities_that_are_none_leave_an_image_without_a_score(logprob, serving, images) -> None:
    choice = {"logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": logprob}]}]}}
    task = VqaScore("photo", {"judge": serving(Endpoint(lambda asked: {"choices": [choice]} if asked.image.mean() > 0.9 else {"\u2581Yes": 0.5, " Yes": 0.25}))})
    images[1] = 1.0
    np.testing.assert_allclose(task.score(images, [Prompt("cat")] * 3).rewards, [0.75, np.nan, 0.75])


def test_a_question_with_the_models_own_tokens_is_not_asked(llava_folder, images) -> None:
    judge = LocalJudge(str(llava_folder), {})
    asked = [Question(0, "Is it <image>?", YES), Question(1, "Is it <end>?", YES), Question(2, "Is it?", YES)]
    first, second, third = judge.reply(images, asked)
    assert "<image>, one of the model's own tokens" in first.failure and "<end>" in second.failure and third.probabilities
