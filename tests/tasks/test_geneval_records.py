"""Prompt records that GenEval cannot judge: refused before a detector is loaded, naming file, field and right value."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.api.task import Prompt, Scores
from bench.cli.app import main
from bench.errors import UsageError
from bench.scoring.folders import write
from tasks.geneval.prompt_records import check_record
from tasks.geneval.prompts import COCO, generate
from tasks.geneval.task import WORLDS, GenEval

CAT = {"class": "cat", "count": 1}
GOOD = {"tag": "single_object", "include": [CAT], "prompt": "a photo of a cat"}


def clause(**changed: Any) -> dict:
    return GOOD | {"include": [CAT | changed]}


def related(position: Any) -> dict:
    return GOOD | {"tag": "position", "include": [{"class": "dog", "count": 1}, CAT | {"position": position}]}


def counting(exclude: list) -> dict:
    return GOOD | {"tag": "counting", "include": [CAT | {"count": 2}], "exclude": exclude}


def without(key: str) -> dict:
    return {k: v for k, v in GOOD.items() if k != key}


WRONG = [
    (without("tag"), "the record has no 'tag'"),
    (without("prompt"), "the record has no 'prompt'"),
    (without("include"), "the record has no 'include'"),
    (GOOD | {"exlcude": [CAT]}, "unknown key 'exlcude' in the record; did you mean 'exclude'"),
    (GOOD | {"Exclude": [CAT]}, "did you mean 'exclude'"),
    (GOOD | {"excluded": [CAT]}, "did you mean 'exclude'"),
    (without("include") | {"includes": [CAT]}, "did you mean 'include'"),
    (GOOD | {"tag": "color_attr"}, "the tag 'color_attr' needs a clause of include with 'color'"),
    (GOOD | {"tag": "colors"}, "the tag 'colors' needs a clause of include with 'color'"),
    (GOOD | {"tag": "position"}, "the tag 'position' needs a clause of include with 'position'"),
    (GOOD | {"tag": None}, "tag should be text, not None"),
    (GOOD | {"tag": 3}, "tag should be text, not 3"),
    (GOOD | {"tag": "Counting"}, "unknown tag 'Counting'; did you mean 'counting'"),
    (GOOD | {"tag": ""}, "unknown tag ''"),
    (GOOD | {"prompt": ["a cat"]}, r"prompt should be text, not \['a cat'\]"),
    (GOOD | {"prompt": " "}, "prompt should be text"),
    (GOOD | {"include": []}, "include is empty"),
    (GOOD | {"include": CAT}, "include should be a list"),
    (GOOD | {"include": None}, "include should be a list"),
    (GOOD | {"include": json.dumps([CAT])}, "include should be a list"),
    (GOOD | {"include": ["cat"]}, r"include\[0\] should be an object"),
    (GOOD | {"include": [{"class": "cat"}]}, r"include\[0\] has no count"),
    (GOOD | {"include": [{"count": 1}]}, r"include\[0\] has no class"),
    (GOOD | {"include": [CAT, CAT | {"colour": "red"}]}, r"unknown key in include\[1\]: 'colour'; did you mean 'color'"),
    (clause(**{"class": "mouse"}), r"unknown include\[0\]\.class 'mouse'; did you mean 'computer mouse'"),
    (clause(**{"class": "remote"}), "did you mean 'tv remote'"),
    (clause(**{"class": "keyboard"}), "did you mean 'computer keyboard'"),
    (clause(**{"class": "sofa"}), "did you mean 'couch'"),
    (clause(**{"class": "Cat"}), "did you mean 'cat'"),
    (clause(**{"class": "cat "}), "did you mean 'cat'"),
    (clause(**{"class": "potted_plant"}), "did you mean 'potted plant'"),
    (clause(**{"class": ["cat"]}), r"include\[0\]\.class should be text"),
    (clause(count="1"), r"include\[0\]\.count should be a whole number from 1 .*, not '1'"),
    (clause(count=0), "count should be"),
    (clause(count=-1), "count should be"),
    (clause(count=1.0), "count should be"),
    (clause(count=True), "count should be"),
    (clause(count=None), "count should be"),
    (clause(count=17), "from 1 to 16, the most that are kept, not 17"),
    (clause(color="gray"), r"unknown include\[0\]\.color 'gray'; .*known: black, blue"),
    (clause(color="Red"), "did you mean 'red'"),
    (clause(color=None), r"include\[0\]\.color should be text"),
    (related(["left", 0]), r"unknown include\[1\]\.position\[0\] 'left'; did you mean 'left of'"),
    (related(["word", 9]), r"unknown include\[1\]\.position\[0\] 'word'"),
    (related(["left of", 9]), r"position\[1\] should be the number of an earlier clause \(0 to 0\), not 9"),
    (related(["left of", 1]), "earlier clause"),
    (related(["left of", -1]), "earlier clause"),
    (related(["left of", True]), "earlier clause"),
    (related(["left of", "0"]), "earlier clause"),
    (related("left of"), r"position should be \[relation, number"),
    (related(["left of"]), r"position should be \[relation, number"),
    (related(None), r"position should be \[relation, number"),
    (clause(position=["above", 0]), "none before the first"),
    (GOOD | {"exclude": None}, "exclude should be a list"),
    (GOOD | {"exclude": CAT}, "exclude should be a list"),
    (GOOD | {"exclude": [CAT | {"count": 0}]}, r"exclude\[0\]\.count should be a whole number from 1 to 16"),
    (GOOD | {"exclude": [CAT | {"count": 17}]}, r"exclude\[0\]\.count should be .* from 1 to 16, the most that are kept, not 17"),
    (GOOD | {"exclude": [CAT]}, r"exclude\[0\]\.count should be more than the 1 of 'cat' that include asks for, not 1"),
    (counting([CAT | {"count": 2}]), r"exclude\[0\]\.count should be more than the 2 of 'cat'"),
    (counting([CAT | {"count": 30}]), r"exclude\[0\]\.count should be a whole number from 1 to 16"),
    (counting([]), r"'counting' needs an exclude of 'cat', as \{class: cat, count: 3\}"),
    (counting([{"class": "dog", "count": 3}]), "'counting' needs an exclude of 'cat'"),
    ({k: v for k, v in counting([]).items() if k != "exclude"}, "'counting' needs an exclude of 'cat'"),
    (GOOD | {"exclude": [CAT | {"class": "mouse"}]}, r"unknown exclude\[0\]\.class 'mouse'"),
    (GOOD | {"exclude": [CAT | {"color": "red"}]}, r"unknown key in exclude\[0\]: 'color'"),
    ([GOOD], "a prompt record is an object"),
    ("text", "a prompt record is an object"),
]


@pytest.mark.parametrize(("record", "said"), WRONG)
def test_wrong_records_are_refused_by_field(record: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_record(record, COCO)


def test_right_records_pass() -> None:
    more = {"id": 7, "exclude": [{"class": "cat", "count": 16}, {"class": "dog", "count": 1}]}
    several = counting([CAT | {"count": 9}])  # 2 to 8 of them
    for record in (*generate(COCO), several, GOOD | more, GOOD | {"exclude": []}, clause(color="red"), related(["above", 0])):
        check_record(record, COCO)
    for world, entry in WORLDS.items():
        task = GenEval(world)
        for split in ("train", "validation", "test"):
            for prompt in task.prompts(split):
                task.check(prompt)
        assert task.entry is entry


def test_every_world_checks_its_own_words() -> None:
    circle = GOOD | {"include": [{"class": "circle", "count": 1}]}
    GenEval("micro").check(Prompt("a circle", "", circle))
    with pytest.raises(UsageError, match=r"include\[0\]\.class 'circle'"):
        GenEval("photo").check(Prompt("a circle", "", circle))
    with pytest.raises(UsageError, match=r"class 'mouse'"):
        GenEval("photo").score(torch.zeros(1, 3, 8, 8), [Prompt("a mouse", "", clause(**{"class": "mouse"}))])
    with pytest.raises(UsageError, match="a prompt record is an object"):
        GenEval("photo").check(Prompt("a cat", "", [GOOD]))


@pytest.mark.parametrize("record", [clause(**{"class": "mouse"}), clause(count="2"), without("tag")])
def test_a_folder_with_a_wrong_record_is_refused_before_anything_is_loaded(
    record: dict, tmp_path: Path, monkeypatch, capsys
) -> None:
    write(tmp_path, [Prompt("a cat", "single_object", GOOD)] * 2, torch.zeros(2, 3, 8, 8), [(0, 0), (7, 0)])
    (tmp_path / "00007" / "metadata.jsonl").write_text(json.dumps(record))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(GenEval, "reader", property(lambda self: pytest.fail("the detector is loaded")))
    monkeypatch.setattr(sys, "argv", ["bench", "score", "geneval", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"error: {tmp_path}/00007/metadata.jsonl: ")
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_server_refuses_wrong_records_by_place() -> None:
    import threading
    import urllib.error
    import urllib.request

    from bench.errors import BenchError
    from bench.scoring.remote import RemoteTask, encode
    from bench.scoring.server import server_for

    task = GenEval("photo")
    task.reader = lambda images, records: [{} for _ in images]  # a reader that finds nothing
    server = server_for(task, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    told = [{"text": "a cat", "metadata": r} for r in (GOOD, clause(**{"class": "mouse"}))]
    body = json.dumps({"images": encode(torch.zeros(2, 3, 8, 8)), "prompts": told}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{url}/score", body))
    assert refused.value.code == 400
    assert "prompt 1: unknown include[0].class 'mouse'" in json.load(refused.value)["error"]
    away = RemoteTask(GenEval("photo"), url)
    with pytest.raises(UsageError, match="did you mean 'computer mouse'"):  # the client knows it without asking
        away.check(Prompt("a mouse", "", told[1]["metadata"]))
    assert away.score(torch.zeros(1, 3, 8, 8), [Prompt("a cat", "", GOOD)]).rewards.tolist() == [0]
    task.score = lambda images, prompts: Scores(np.array([-14.0]), {})
    assert away.score(torch.zeros(1, 3, 8, 8), [Prompt("a cat", "", GOOD)]).rewards.tolist() == [-14]
    task.score = lambda images, prompts: Scores(np.array([-14.5]), {})
    with pytest.raises(BenchError, match=r"outside \[-14, 1\]"):
        away.score(torch.zeros(1, 3, 8, 8), [Prompt("a cat", "", GOOD)])
    server.shutdown()


def test_keys_that_resemble_none_that_is_absent_stay() -> None:
    check_record(GOOD | {"prompt_id": 3, "tags": ["x"], "seed": 1, "includes_people": False}, COCO)
