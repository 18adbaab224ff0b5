"""Prompt suites by their published rules: small files in the official formats, and a judge that answers as told."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.api.task import Prompt, Task
from bench.cli.score import score_folder
from bench.errors import DamagedError, MissingError, UsageError
from bench.registry import find
from bench.scoring.folders import write
from bench.training.evaluate import Evaluation
from tasks.official_scripts import literal
from tasks.suites.blip import BlipJudge
from tasks.suites.blip import prepared as blip_question
from tasks.suites.reading import matched, prepared, units
from tasks.vision.judge import Question
from tests.commands import bench
from tests.tiny_judges import Asked, Endpoint, blip

GENEVAL2 = [
    {"prompt": "four white cats", "atom_count": 3, "vqa_list": [["How many cats are in the image?", "four"], ["Are the cats white?", "Yes"], ["Are there any cats in the image?", "Yes"]], "skills": ["count", "attribute", "object"]},
    {"prompt": "a red dog jumping", "atom_count": 3, "vqa_list": [["Is the dog red?", "Yes"], ["Is the dog jumping?", "Yes"], ["Is there a dog?", "Yes"]], "skills": ["attribute", "verb", "object"]},
    {"prompt": "a cow left of a pig", "atom_count": 4, "vqa_list": [["Is there a cow?", "Yes"], ["Is there a pig?", "Yes"], ["Is the cow left of the pig?", "Yes"]], "skills": ["object", "object", "position"]},
]  # fmt: skip
DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
p1,"A red barn, by a lake",,1,0,entity,whole,entity - whole (barn),Is there a barn?
p1,"A red barn, by a lake",,2,1,attribute,color,"attribute - color (barn, red)",Is the barn red?
p1,"A red barn, by a lake",,3,2,relation,spatial,"relation - spatial (barn, lake, by)",Is the barn by a lake?
p2,A quiet street,,1,0,entity,whole,entity - whole (street),Is there a street?
"""
ONEIG = {
    "anime": {"000": {"question": {"1": "Is there a girl?", "2": "Does she smile?", "3": "At whom?"}, "dependency": {"1": [0], "2": [1], "3": [2]}}},
    "human": {"000": {"question": json.dumps({"1": "Is there a man?"}), "dependency": json.dumps({"1": [0]})}},
    "object": {"000": {"question": {"1": "Is there a cup?", "2": "Is it blue?"}, "dependency": {"1": [0], "2": [1]}}},
}  # fmt: skip
READ = "Read what is written here."
TEMPLATE = "\nTemplate {}.\n##YNQuestions##\nAnswer yes or no.\n"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """suite -> its official file or folder."""
    found = {
        "geneval2": tmp_path / "geneval2_data.jsonl", "dpg": tmp_path / "dpg_bench.csv", "oneig": tmp_path / "OneIG",
        "oneig_text": tmp_path / "OneIG", "longtext": tmp_path / "textbench", "tiif": tmp_path / "TIIF",
        "compbench": tmp_path / "dataset",
    }  # fmt: skip
    found["geneval2"].write_text("".join(json.dumps(row) + "\n" for row in GENEVAL2))
    found["dpg"].write_text(DPG)
    folder = found["oneig"]
    (folder / "scripts/alignment/Q_D").mkdir(parents=True)
    (folder / "scripts/text").mkdir()
    (folder / "OneIG-Bench.csv").write_text(
        "category,id,prompt_en\nAnime_Stylization,000,a girl\nPortrait,000,a man\nGeneral_Object,000,a cup\n"
        'Text_Rendering,000,"a sign that says ""Hello, World hello"""\nText_Rendering,001,a note\n'
    )
    for name, entry in ONEIG.items():
        (folder / f"scripts/alignment/Q_D/{name}.json").write_text(json.dumps(entry))
    (folder / "scripts/text/text_content.csv").write_text('id,text_content\n000,"Hello, World hello"\n001,one two three four\n')
    rows = [
        {"prompt_id": 0, "prompt": "a poster", "text": ["Grand Opening", "today!"], "category": "poster"},
        {"prompt_id": 1, "prompt": "a page", "text": ["one two one"], "category": "page"},
    ]
    found["longtext"].mkdir()
    (found["longtext"] / "text_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found["longtext"] / "evaluate_text_reward.py").write_text(f"class Evaluator:\n    def __init__(self):\n        self.qwen_prompt = ({READ!r})\n")
    (folder / "scripts/utils").mkdir()
    (folder / "scripts/utils/inference.py").write_text(f"import torch\nclass Judge:\n    def __init__(self):\n        self.TEXT_PROMPT = {READ!r}\n")
    for kind in ("prompts", "eval_prompts"):
        (found["tiif"] / f"data/testmini_{kind}").mkdir(parents=True)
    (found["tiif"] / "eval").mkdir()
    (found["tiif"] / "eval/eval_with_vlm.py").write_text(
        "import openai\n" + "".join(f"{name} = '''{TEMPLATE.format(i)}'''\n" for i, name in enumerate(("raw_prompt", "raw_prompt_1", "raw_prompt_2")))
    )
    for kind, questions in (("color", [["Is it red?", "Is it blue?", "Is it dark?"], ["Is it green?"]]), ("text", [["Does it say hi?"]])):
        (found["tiif"] / f"data/testmini_prompts/{kind}_prompts.jsonl").write_text(
            "".join(json.dumps({"type": kind, "short_description": f"{kind} {i}", "long_description": f"long {kind} {i}"}) + "\n" for i in range(len(questions)))
        )
        (found["tiif"] / f"data/testmini_eval_prompts/{kind}_eval_prompts.jsonl").write_text(
            "".join(json.dumps({"type": kind, "yn_question_list": mine, "yn_answer_list": ["Yes", "no", "no"][: len(mine)]}) + "\n" for mine in questions)
        )
    found["compbench"].mkdir()
    for category in ("color", "shape", "texture"):
        (found["compbench"] / f"{category}_val.txt").write_text("a green bench and a red car\n")
    return found


@pytest.fixture
def judged() -> Iterator:
    """judged(suite, answer, **settings) -> the task with an endpoint that answers so."""
    started: list[Endpoint] = []

    def make(name: str, path: Path, answer, **settings: str) -> Any:
        started.append(Endpoint(answer))
        task = find("task", name)("photo", {"prompts": str(path), "judge": started[-1].start()} | settings)
        task.endpoint = started[-1]
        return task

    yield make
    for endpoint in started:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def noise(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def score_all(task: Task) -> tuple[Any, Evaluation]:
    prompts = task.prompts("test")
    scores = task.score(noise(len(prompts)), prompts)
    return scores, Evaluation.of(task, prompts, scores)


def by_image(asked: Asked) -> float:
    """A number in [0, 1] that depends on the image and the question."""
    return (float(asked.image.mean()) * 7919 + len(asked.text) * 0.37 + sum(map(ord, asked.text)) * 0.011) % 1


def test_geneval2_is_soft_tifa(files, judged) -> None:
    """As evaluation.py and soft_tifa_analysis.py: means of answer probabilities, skills pooled over all questions."""
    from scipy.stats import gmean

    spelled: Counter[str] = Counter()

    def answer(asked: Asked) -> dict[str, float]:
        assert asked.text.endswith(" Answer in one word.")
        p = by_image(asked)
        if asked.text.startswith("How many"):
            return {"four": p / 2, " 4": p / 4, "Four": p / 4, "Yes": 0.3 * (1 - p)}
        spelled[asked.text] += 1
        return {"Yes": p / 2, "yes": p / 2, "4": 0.9 * (1 - p)}

    task = judged("geneval2", files["geneval2"], answer)
    scores, found = score_all(task)
    images = noise(3)
    official, atoms = [], {"count": [], "attribute": [], "object": [], "verb": [], "position": []}
    for image, row in zip(images, GENEVAL2):
        level = (image * 255).round() / 255
        probabilities = [by_image(Asked(level, f"{q} Answer in one word.", "", {}, {})) for q, _ in row["vqa_list"]]
        official.append(probabilities)
        for skill, p in zip(row["skills"], probabilities):
            atoms[skill].append(p)
    np.testing.assert_allclose(scores.metrics["gm"], [gmean(p) for p in official], rtol=1e-5)
    np.testing.assert_allclose(scores.metrics["am"], [np.mean(p) for p in official], rtol=1e-5)
    np.testing.assert_array_equal(scores.rewards, scores.metrics["gm"])
    published = task.published(task.prompts("test"), found.rows)
    for skill, values in atoms.items():
        assert published[skill] == pytest.approx(100 * np.mean(values), rel=1e-5), skill
    assert published["gm"] == pytest.approx(100 * np.mean([gmean(p) for p in official]), rel=1e-5)
    assert np.isnan(scores.metrics["skill-verb"]).tolist() == [True, False, True]
    # Without the first image the numbers are those of the others.
    scores.metrics["skill-object"][0] = scores.metrics["gm"][0] = np.nan
    published = task.published(task.prompts("test"), scores.metrics)
    assert published["object"] == pytest.approx(100 * np.mean(atoms["object"][1:]), rel=1e-5)
    assert published["gm"] == pytest.approx(100 * np.mean([gmean(p) for p in official[1:]]), rel=1e-5)
    assert list(dict.fromkeys(found.strata.tolist())) == ["3 atoms", "4 atoms"]
    assert scores.details[0]["replies"][1] == pytest.approx([official[0][1] / 2, official[0][1] / 2, 0, 0], rel=1e-5)
    zero = judged("geneval2", files["geneval2"], lambda _: {"No": 1.0})
    assert (score_all(zero)[0].metrics["gm"] == 0).all()


def test_dpg_passes_a_no_on_to_all_that_depends_on_it(files, judged) -> None:
    """As compute_dpg_bench.py: the barn is missing, so it is not red, so it is not by the lake either."""

    def answer(asked: Asked) -> str:
        assert asked.text.endswith("? Answer yes or no.")
        return "No, there is none." if "a barn" in asked.text else "Yes."

    task = judged("dpg", files["dpg"], answer)
    assert [p.text for p in task.prompts("test")] == ["A red barn, by a lake"] * 4 + ["A quiet street"] * 4
    scores, found = score_all(task)
    np.testing.assert_allclose(scores.metrics["dpg"], [0] * 4 + [1] * 4)
    assert found.estimate().value == pytest.approx(0.5)  # the mean over prompts of the mean over images
    published = task.published(task.prompts("test"), found.rows)  # of categories, the judge's own answers
    assert published == pytest.approx(
        {"dpg": 50, "entity": 50, "attribute": 100, "relation": 100, "global": np.nan, "other": np.nan}, nan_ok=True
    )
    assert len(judged("dpg", files["dpg"], answer, images="1").prompts("test")) == 2


def test_oneig_counts_the_judges_own_no_only(files, judged) -> None:
    """As alignment_score.py: a question below one that was only changed to no keeps its own answer."""

    def answer(asked: Asked) -> str:
        assert asked.text.endswith(". Please answer 'Yes' or 'No' only.")
        return {"Is there a girl?": "No", "Is it blue?": "yes"}.get(asked.text.split(". Please")[0], "Yes")

    task = judged("oneig", files["oneig"], answer)
    scores, found = score_all(task)
    # girl: no, no (changed), yes. man: yes. cup: yes, "yes" is not "Yes".
    np.testing.assert_allclose(scores.metrics["alignment"][::4], [1 / 3, 1, 1 / 2])
    assert found.estimate().value == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found.estimate("alignment-object").value == pytest.approx(1 / 2)
    assert np.isnan(scores.metrics["alignment-object"][:8]).all()
    assert len(found.rows["alignment"]) == 12


def test_texts_are_prepared_and_matched_as_published() -> None:
    assert prepared("Hello,  World!\n(2nd) day's") == "Hello World 2nd days"
    assert prepared("你好, World 2") == "你好World2"
    assert units("你好a") == ["你", "好", "a"]
    assert prepared("Hello 世界", chinese=False) == "Hello 世界" and units("ab", chinese=True) == ["a", "b"]
    assert prepared("a 鿕 b") == "a b"  # a Chinese letter that does not count makes no Chinese text
    assert matched(["one", "two", "one"], ["one", "one", "one"]) == 2
    assert matched(["Hello", "World"], ["hello", "World"]) == 1
    assert matched(list("你好好"), list("好你")) == 2


def test_oneigs_text_score_has_the_published_parts(files, judged) -> None:
    """As text_score.py, whose score of a model is its formula on the means of the three parts."""
    read = {0: "Hello World helo", 1: "one two three four"}

    def answer(asked: Asked) -> str:
        assert asked.text == READ and asked.request["max_tokens"] == 128
        return read[0] if asked.image.mean() < 0.5 else f"addCriterion{read[1]}"

    task = judged("oneig_text", files["oneig_text"], answer, images="1")
    prompts = task.prompts("test")
    images = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)])
    scores = task.score(images, prompts)
    np.testing.assert_allclose(scores.metrics["edit_distance"], [1, 0])
    np.testing.assert_allclose(scores.metrics["exact"], [0, 1])
    np.testing.assert_allclose(scores.metrics["text"], [1 - 1 * 1 * (1 - 2 / 3) / 100, 1])
    np.testing.assert_array_equal(scores.rewards, scores.metrics["text"])
    ed, cr, wac = 0.5, 0.5, (2 + 4) / (3 + 4)
    expected = {"text_score": 100 * (1 - ed * (1 - cr) * (1 - wac) / 100), "ED": ed, "CR": 100 * cr, "WAC": 100 * wac}
    assert task.published(prompts, scores.metrics) == pytest.approx(expected)


def test_longtexts_score_is_the_share_of_all_words(files, judged) -> None:
    """As evaluate_text_reward.py and summary_scores.py."""

    def answer(asked: Asked) -> str:
        assert asked.text == READ and asked.request["max_tokens"] == 1024
        return "GRAND opening tomorow" if asked.image.mean() < 0.5 else "No text recognized."

    task = judged("longtext", files["longtext"], answer, images="1")
    images = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)])
    scores = task.score(images, task.prompts("test"))
    assert task.published(task.prompts("test"), scores.metrics) == pytest.approx({"text_score": 100 * 2 / 6})
    np.testing.assert_allclose(scores.rewards, [2 / 3, 0])
    row = {"prompt_id": 0, "prompt": "海报", "text": ["你好", "世界!"]}
    (files["longtext"] / "text_prompts_zh.jsonl").write_text(json.dumps(row) + "\n")
    task = judged("longtext", files["longtext"], lambda _: "世 好", images="1", language="zh")
    assert task.score(noise(1), task.prompts("test")).rewards == pytest.approx([0.5])
    mixed = judged("longtext", files["longtext"], lambda _: "世界 grand opening Today", images="1")
    np.testing.assert_allclose(mixed.score(noise(2), mixed.prompts("test")).rewards, [1, 0])  # English is read as English


def test_tiif_asks_all_questions_at_once_and_again_if_some_are_not_answered(files, judged) -> None:
    tries: Counter[str] = Counter()

    def answer(asked: Asked) -> str:
        assert asked.system == "You are a professional image critic."
        key = f"{float(asked.image.mean()):.4f}"
        tries[key] += 1
        count = asked.text.count("?")
        if count == 3 and tries[key] < 3:
            return "yes, it is red\nI cannot tell\n"
        return "\n".join(["Yes - it is", "", "  no, it is not", "yes: very"][: count + (count > 1)])

    task = judged("tiif", files["tiif"], answer)
    prompts = task.prompts("test")
    assert [(p.text, p.stratum) for p in prompts] == [("color 0", "color"), ("color 1", "color"), ("text 0", "text")]
    scores, found = score_all(task)
    # color 0: yes no yes, of which two are right; color 1 and text 0: yes, right.
    np.testing.assert_allclose(scores.rewards, [2 / 3, 1, 1])
    assert sorted(tries.values()) == [1, 1, 3]
    asked = [a.text for a in task.endpoint.asked if "Is it red?" in a.text]
    assert {text[:12] for text in asked} == {f"\nTemplate {i}." for i in range(3)} and "Is it red?\nIs it blue?\nIs it dark?" in asked[0]
    # A type's score is the share of its questions, the overall score the mean over types.
    assert task.published(prompts, found.rows) == pytest.approx({"overall": 87.5, "color": 75, "text": 100})
    order = [part["type"] for part in task.endpoint.asked[0].request["messages"][-1]["content"]]
    assert order == ["text", "image_url"]
    assert judged("tiif", files["tiif"], answer, description="long").prompts("test")[0].text == "long color 0"
    never = judged("tiif", files["tiif"], lambda asked: "yes")
    scores = never.score(noise(3), prompts)
    np.testing.assert_allclose(scores.rewards, [np.nan, 1, 1])
    assert scores.details[0]["failure"] == "the judge gave 1 answers to 3 questions"
    assert never.published(prompts, scores.metrics) == pytest.approx({"overall": 100, "color": 100, "text": 100})


def spacy_finds(monkeypatch, phrases: list[str]) -> None:
    """A spaCy whose model finds these noun phrases."""
    module = ModuleType("spacy")
    module.load = lambda name: lambda text: SimpleNamespace(noun_chunks=phrases)
    monkeypatch.setitem(sys.modules, "spacy", module)


def test_compbench_is_the_product_of_blips_answers(files, tmp_path: Path, monkeypatch) -> None:
    """As BLIP_vqa.py and blip_vqa.py: P(yes) / (P(yes) + P(no)) for every noun phrase, eight at most."""
    from transformers import BertTokenizer, BlipForQuestionAnswering

    blip(tmp_path / "blip")
    spacy_finds(monkeypatch, ["a green bench", "the left", "a red car", *["a car"] * 8])
    task = find("task", "compbench")("photo", {"prompts": str(files["compbench"]), "judge": str(tmp_path / "blip"), "images": "2"})
    prompts = task.prompts("test")
    assert [p.stratum for p in prompts] == ["color", "color", "shape", "shape", "texture", "texture"]
    images = noise(6)
    scores = task.score(images, prompts)
    model, tokenizer = BlipForQuestionAnswering.from_pretrained(tmp_path / "blip").eval(), BertTokenizer.from_pretrained(tmp_path / "blip")
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    for image, found in zip(images, scores.rewards):
        level = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        pixels = BlipImageProcessorPil(size={"height": 32, "width": 32})(level, return_tensors="pt")["pixel_values"]
        product = 1.0
        for phrase in ["a green bench", "a red car", *["a car"] * 6]:
            ids = tokenizer(f"{phrase}?", return_tensors="pt")["input_ids"]
            ids[:, 0] = 14  # [ENC]
            with torch.no_grad():
                states = model.text_encoder(ids, encoder_hidden_states=model.vision_model(pixels)[0])[0]
                logits = model.text_decoder(torch.tensor([[13]]), encoder_hidden_states=states).logits[0, 0]  # [DEC]
            yes, no = logits.softmax(-1)[tokenizer.convert_tokens_to_ids(["yes", "no"])]
            product *= float(yes / (yes + no))
        assert found == pytest.approx(product, abs=2e-4)  # with 1e-5 in LayerNorm, and without rounding
    assert len({str(detail) for detail in scores.details}) == 6
    assert task.score(noise(1), [Prompt("a", "color", {"phrases": []})]).rewards == 1  # as published
    assert task.scorer_name.startswith("compbench-1+asked-") and "+blip-vqa-" in task.scorer_name
    alone = BlipJudge({"judge": str(tmp_path / "blip"), "batch": "1"}).reply(images, [Question(3, "a red car?", ("yes", "no"))])
    both = BlipJudge({"judge": str(tmp_path / "blip")}).reply(images, [Question(0, "a green red bench?", ("no",)), Question(3, "a red car?", ("yes", "no"))])
    np.testing.assert_allclose(alone[0].probabilities, both[1].probabilities, rtol=1e-4)
    assert blip_question('A "Green" bench; (old)... ?') == "a green bench old ?"
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingError, match=r"spaCy's en_core_web_sm.*python -m spacy download"):
        find("task", "compbench")("photo", {"prompts": str(files["compbench"])}).prompts("test")
    with pytest.raises(UsageError, match="did you mean 'color'"):
        find("task", "compbench")("photo", {"categories": "colour"})


SUITES = ["geneval2", "dpg", "oneig", "oneig_text", "longtext", "tiif"]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_for_tests_on_photographs_and_says_what_it_needs(name: str, files, judged) -> None:
    kind = find("task", name)
    with pytest.raises(UsageError, match="world for task"):
        kind("micro")
    with pytest.raises(MissingError, match=rf"set scorers\.{name}\.prompts to the (file|folder) .*github.com"):
        kind("photo").prompts("test")
    with pytest.raises(UsageError, match="test prompts only, no train prompts"):
        kind("photo", {"prompts": str(files[name])}).prompts("train")
    with pytest.raises(MissingError, match=rf"published: {kind.judged_by}\): set scorers\.{name}\.judge"):
        _ = kind("photo", {"prompts": str(files[name])}).scorer_name
    with pytest.raises((MissingError, UsageError), match=r"no file of|holds no"):
        kind("photo", {"prompts": str(files[name].with_name("nowhere"))}).prompts("test")
    for wrong in ("0", "1000", "²"):
        with pytest.raises(UsageError, match="images is a number of images per prompt below 1000"):
            kind("photo", {"images": wrong})
    with pytest.raises(UsageError, match="key is the name of an environment variable") as refused:
        kind("photo", {"key": "sk-secret-0123"})
    assert "secret" not in str(refused.value)
    with pytest.raises(UsageError, match=f"a prompt of {name} has other metadata"):
        kind("photo", {"prompts": str(files[name])}).check(Prompt("a cat"))
    assert not kind.in_all and kind.images >= 1 and kind.judged_by


@pytest.mark.parametrize("name", SUITES)
def test_a_suites_name_has_the_judge_the_instructions_and_the_files(name: str, files, judged) -> None:
    task = judged(name, files[name], lambda _: {"Yes": 1.0})
    first = task.scorer_name
    version, asked, data, judge = first.split("+")
    assert version == f"{name}-{task.version}" and asked.startswith("asked-") and data.startswith("files-")
    assert judge == "endpoint-tiny-judge-2026-11-01"
    path = task.official(files[name])[0]
    path.write_text(path.read_text().replace("e", "E"))
    again = judged(name, files[name], lambda _: {"Yes": 1.0}).scorer_name
    assert again.split("+")[2] != data and again.split("+")[:2] == [version, asked]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("geneval2", '"skills": ["count", ', '"skills": [', "3 questions, but 2 skills"),
        ("geneval2", "atom_count", "atoms", "'atom_count' is missing"),
        ("geneval2", '"prompt": "four white cats"', '"prompt": 5', "a prompt of geneval2 is not text"),
        ("geneval2", '"verb"', '"dance"', "skills.1: Input should be 'object'"),
        ("dpg", ",1,attribute,color", ",", "line 3: a row is cut off"),
        ("dpg", "p1,\"A red barn, by a lake\",,2,", "p1,A red barn,,2,", "the item 'p1' is there twice"),
        ("geneval2", '"Yes"]', '"Maybe"]', "should be Yes, not 'Maybe'"),
        ("geneval2", '{"prompt": "a cow', '{"prompt" "a cow', "line 3"),
        ("dpg", "item_id", "item", "has no column 'item_id'"),
        ("dpg", ",3,2,", ",3,7,", "question 3 depends on 7, which is not there"),
        ("dpg", ",2,1,attribute", ",2,one,attribute", "does not hold the files of dpg"),
    ],
)  # fmt: skip
def test_files_that_are_not_the_suites_are_refused(name: str, old: str, new: str, message: str, files) -> None:
    text = files[name].read_text()
    assert old in text
    files[name].write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=message):
        find("task", name)("photo", {"prompts": str(files[name])}).prompts("test")


def test_a_text_without_letters_is_refused(files) -> None:
    path = files["longtext"] / "text_prompts.jsonl"
    path.write_text(path.read_text().replace("one two one", "?!"))
    with pytest.raises(UsageError, match="the text has no letters"):
        find("task", "longtext")("photo", {"prompts": str(files["longtext"])}).prompts("test")
    with pytest.raises(UsageError, match="did you mean 'zh'"):
        find("task", "longtext")("photo", {"language": "zhe"})


def test_tiifs_files_must_belong_together(files) -> None:
    folder = files["tiif"]
    script, questions = folder / "eval/eval_with_vlm.py", folder / "data/testmini_eval_prompts/color_eval_prompts.jsonl"
    text = questions.read_text()
    questions.write_text(text.split("\n")[0] + "\n")
    with pytest.raises(DamagedError, match="2 prompts, but there are 1 lists of questions"):
        find("task", "tiif")("photo", {"prompts": str(folder)}).prompts("test")
    questions.write_text(text)
    script.write_text(script.read_text().replace("raw_prompt_2", "another"))
    literal.cache_clear()
    with pytest.raises(DamagedError, match="it has no text raw_prompt_2"):
        find("task", "tiif")("photo", {"prompts": str(folder)}).prompts("test")
    script.write_text("raw_prompt = '''")
    literal.cache_clear()
    with pytest.raises(DamagedError, match="not the official script"):
        find("task", "tiif")("photo", {"prompts": str(folder)}).prompts("test")
    with pytest.raises(UsageError, match="did you mean 'testmini'"):
        find("task", "tiif")("photo", {"part": "testmin"})
    with pytest.raises(UsageError, match=r"holds no \*.jsonl"):
        find("task", "tiif")("photo", {"prompts": str(folder), "part": "test"}).prompts("test")


def test_a_model_and_a_folder_of_images_are_judged_by_the_commands(files, judged, sd3_folder, tmp_path: Path, capsys) -> None:
    task = judged("geneval2", files["geneval2"], lambda asked: {"Yes": by_image(asked), "four": by_image(asked)})
    scorer = ["--set", f"scorers.geneval2.judge={task.given['judge']}"]
    own = [*scorer, "--set", f"scorers.geneval2.prompts={files['geneval2']}"]
    command = ["eval", "--adapter", "base", "--tasks", "geneval2", "--backbone", str(sd3_folder), "--steps", "2", *own]
    done = bench([*command, "--set", "scorers.features.model=none", "--pictures", str(tmp_path / "drawn"), "--output", str(tmp_path / "scores.json")])
    assert done.returncode == 0, done.stderr
    assert "gm *" in done.stdout and "skill-position" in done.stdout
    (record,) = json.loads((tmp_path / "scores.json").read_text())
    score_folder("geneval2", tmp_path / "drawn/geneval2", scorer[1:], "photo", 8)
    lines = [json.loads(line) for line in (tmp_path / "drawn/geneval2/results-geneval2.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([line["gm"] for line in lines], record["rows"]["gm"], rtol=1e-6)
    assert "asked-" in capsys.readouterr().out
    assert record["scorer"] == task.scorer_name and record["published"]["gm"] == pytest.approx(100 * np.mean(record["rows"]["gm"]))
    assert f"geneval2 at guidance scale 1, as published: gm {record['published']['gm']:.2f}" in done.stdout
    # Images of other tools: the official metadata is enough.
    prompts = [Prompt(row["prompt"], f"{row['atom_count']} atoms", {key: row[key] for key in ("vqa_list", "skills")}) for row in GENEVAL2]
    write(tmp_path / "other", prompts, noise(3), [(i, 0) for i in range(3)])
    score_folder("geneval2", tmp_path / "other", scorer[1:], "photo", 8)
    (line, *_) = map(json.loads, (tmp_path / "other/results-geneval2.jsonl").read_text().splitlines())
    assert line["gm"] > 0 and line["skill-verb"] is None
    assert "geneval2, as published: gm" in capsys.readouterr().out


def test_a_judge_that_goes_away_is_one_clear_line(files, sd3_folder) -> None:
    done = bench([
        "eval", "--adapter", "base", "--tasks", "dpg", "--backbone", str(sd3_folder), "--set", f"scorers.dpg.prompts={files['dpg']}",
        "--set", "scorers.dpg.judge=http://127.0.0.1:9/v1", "--set", "scorers.features.model=none",
    ])  # fmt: skip
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "start the model's server, or correct scorers.dpg.judge" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("geneval2", {"vqa_list": "ab", "skills": "ab"}),
        ("geneval2", {"vqa_list": [["How many?", 4]], "skills": ["count"]}),
        ("dpg", {"questions": {"1": "a?", "01": "b?"}, "parents": {"1": [0]}, "categories": {"1": "entity"}}),
        ("dpg", {"questions": {"1": "a?"}, "parents": {"1": "0"}, "categories": {"1": "entity"}}),
        ("dpg", {"questions": {"1": "a?"}, "parents": {"1": [0]}, "categories": {}}),
        ("oneig", {"questions": {"1": "a?"}, "parents": {"1": [0]}, "class": "cat"}),
        ("oneig_text", {"text": ["a"]}),
        ("longtext", {"text": "Hello"}),
        ("tiif", {"questions": ["a?"], "answers": ["maybe"]}),
        ("compbench", {"phrases": "ab"}),
    ],
)
def test_metadata_of_other_forms_are_refused(name: str, metadata: dict, files) -> None:
    task = find("task", name)("photo", {"prompts": str(files[name])})
    with pytest.raises(UsageError, match=f"a prompt of {name} has other metadata: "):
        task.check(Prompt("a", "", metadata))


def test_nothing_is_trained_on_a_suite(files, sd3_folder) -> None:
    for command in (["run", "--method", "single_task"], ["compare", "--methods", "single_task"]):
        for more in ([], ["--dry-run"]):
            done = bench([*command, "--tasks", "geneval2", "--backbone", str(sd3_folder), *more, "--set", f"scorers.geneval2.prompts={files['geneval2']}"])
            assert done.returncode == 2 and "geneval2 has test prompts only" in done.stderr, done.stderr


def test_a_pipe_is_no_file_of_a_suite(files) -> None:
    import os

    path = files["geneval2"].with_name("pipe")
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="is not a file"):
        find("task", "geneval2")("photo", {"prompts": str(path)}).prompts("test")
