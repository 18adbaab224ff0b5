"""Training on the user's pictures: losses against their formulas, draws, refusals."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.probes.estimates import ProbeLab
from bench.sampler.draws import draw, normal
from bench.scoring.loading import load_task
from bench.system.workers import Workers
from bench.training.execute import Session, execute
from methods import offline
from methods.flow_matching import FlowMatching
from methods.offline import OfflineOptions
from methods.offline_dpo import REFERENCE, OfflineDpo, OfflineDpoOptions
from methods.picture_folder import load_picture
from methods.preference_loss import preference_loss
from tests.folders import captions, data, write_folder
from tests.methods.conftest import shake

METHODS = ("flow_matching", "offline_dpo")


def test_the_preference_loss_is_eq_14() -> None:
    """By hand: margins 1, 0 and -2 at beta 0.5, and the gradient -beta sigmoid(-beta margin)."""
    chosen = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    before, lost, lost_before = (torch.tensor(v, dtype=torch.float64) for v in ([1.5, 2, 3], [2.0, 3, 4], [1.5, 3, 4]))
    loss = preference_loss(chosen, before, lost, lost_before, 0.5)
    expected = [torch.tensor(1 + 2.718281828459045**-x, dtype=torch.float64).log() for x in (0.5, 0.0, -1.0)]
    assert torch.allclose(loss, torch.stack(expected), atol=1e-12)
    loss.sum().backward()
    weights = 0.5 / (1 + torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64).exp())
    assert torch.allclose(chosen.grad, weights, atol=1e-12)


def folder_of(tmp_path: Path, rows: int = 5) -> dict[str, str]:
    return {"ocr": str(write_folder(tmp_path / "data", captions("ocr", rows)))}


def direct(lab, experience, task: str):
    """error(x0, adapter) [B] of an update, written out: the mean squared error of the velocity."""
    generator, x0 = lab.generator("levels", task), experience.latents[0]
    table = torch.tensor(lab.sampler.schedule.sigmas[:-1])
    sigma = table[draw(lambda n: torch.randint(len(table), (n,), generator=generator), len(x0), generator)]
    noise = normal(x0.shape, generator, x0.device)

    def error(latents: torch.Tensor, adapter: str | None) -> torch.Tensor:
        at = sigma[:, None, None, None]
        v = lab.backbone.velocity((1 - at) * latents + at * noise, sigma, experience.conditioning, adapter)
        return ((v - (noise - latents)) ** 2).mean((1, 2, 3))

    return error


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("chunk", [2, 24])
def test_flow_matching_is_the_mean_squared_error_of_the_velocity(
    make_lab, gradient, tmp_path: Path, guidance: float, chunk: int
) -> None:
    lab = make_lab(guidance=guidance)
    method = FlowMatching(OfflineOptions(data=folder_of(tmp_path), batch=5, chunk=chunk))
    loss, found = gradient(lab, method, "ocr")
    with torch.no_grad():
        experience = method.collect(lab, "ocr")
    expected = direct(lab, experience, "ocr")(experience.latents[0], STUDENT).mean()
    for parameter in lab.backbone.adapters.parameters(STUDENT):
        parameter.grad = None
    expected.backward()
    flat = torch.cat([p.grad.flatten() for p in lab.backbone.adapters.parameters(STUDENT)])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(found, flat, atol=1e-4 * float(flat.abs().max()))


@pytest.mark.parametrize("chunk", [2, 24])
def test_dpo_compares_both_pictures_of_a_pair_with_the_reference(make_lab, gradient, tmp_path: Path, chunk: int) -> None:
    lab = make_lab()
    lab.backbone.adapters.add(REFERENCE, Shape(4, 8.0))
    shake(lab.backbone, REFERENCE, 0.03)
    method = OfflineDpo(OfflineDpoOptions(data=folder_of(tmp_path), batch=5, chunk=chunk, beta=3.0))
    loss, found = gradient(lab, method, "ocr")
    with torch.no_grad():
        experience = method.collect(lab, "ocr")
    error = direct(lab, experience, "ocr")
    chosen, rejected = experience.latents
    inside = (error(chosen, STUDENT) - error(chosen, REFERENCE)) - (error(rejected, STUDENT) - error(rejected, REFERENCE))
    expected = -torch.log(torch.sigmoid(-3.0 * inside)).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert lab.notes["told_apart/ocr"] == pytest.approx((inside < 0).float().mean().item())
    assert found.norm() > 0


def test_pictures_are_the_files_and_captions_their_own(make_lab, tmp_path: Path) -> None:
    """Latents of what is drawn decode to the file's picture, as far as the codec can show it."""
    lab, where = make_lab(), folder_of(tmp_path)
    method = FlowMatching(OfflineOptions(data=where, batch=5))
    with torch.no_grad():
        found = method.collect(lab, "ocr")
        rows = method._drawn(lab, "ocr", 0, range(5))
        expected = lab.backbone.encode([row.caption for row in rows])
    pictures = torch.stack([load_picture(row, 0, (32, 32)) for row in rows])
    assert (lab.backbone.decode(found.latents[0]) - pictures).abs().mean() < 0.05
    assert torch.equal(found.conditioning["sequence"], expected["sequence"])


def test_latents_are_kept_up_to_a_limit_and_are_the_same_either_way(make_lab, tmp_path: Path, monkeypatch) -> None:
    lab, where, encoded = make_lab(), folder_of(tmp_path), []
    honest = lab.backbone.encode_pictures
    monkeypatch.setattr(lab.backbone, "encode_pictures", lambda images: encoded.append(len(images)) or honest(images))
    found = {}
    for limit, expected in {10**9: 5, 3 * 4096: 5 + 2 * 2}.items():  # a latent of micro has 4096 bytes
        monkeypatch.setattr(offline, "LATENTS", limit)
        method = FlowMatching(OfflineOptions(data=where, batch=5))
        with torch.no_grad():
            epochs = [method.collect(replace(lab, step=step), "ocr").latents[0] for step in range(3)]
        assert encoded == [1] * expected
        encoded.clear()
        found[limit] = torch.cat(epochs)
    assert torch.equal(*found.values())


@pytest.mark.parametrize("batch", [2, 5, 12])
def test_an_epoch_has_every_row_once_whatever_the_batch(make_lab, tmp_path: Path, batch: int) -> None:
    lab = make_lab()
    method = FlowMatching(OfflineOptions(data=folder_of(tmp_path), batch=batch))
    with torch.no_grad():
        method.collect(lab, "ocr")
    drawn = [row.caption for step in range(15) for row in method._drawn(lab, "ocr", step, range(batch))]
    epochs = [drawn[start : start + 5] for start in range(0, len(drawn) - 4, 5)]
    assert all(set(Counter(epoch).values()) == {1} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # in another order
    again = FlowMatching(method.options)  # of the step alone: what a resumed run draws
    with torch.no_grad():
        again.collect(replace(lab, step=3), "ocr")
    rows = [method._drawn(lab, "ocr", 7, range(batch)), again._drawn(replace(lab, step=3), "ocr", 7, range(batch))]
    assert rows[0] == rows[1]


def test_processes_share_the_rows_of_a_batch_and_probes_draw_others(make_lab, tmp_path: Path) -> None:
    lab = make_lab()
    method = FlowMatching(OfflineOptions(data=folder_of(tmp_path, 30), batch=7))
    with torch.no_grad():
        whole = method.collect(lab, "ocr").latents[0]
        shares = [method.collect(replace(lab, workers=Workers(i, 2), rows={}), "ocr").latents[0] for i in range(2)]
        probes = [method.collect(ProbeLab.of(lab).at(seed, 0), "ocr").latents[0] for seed in (0, 1, 0)]
    assert torch.equal(torch.cat(shares), whole)
    assert torch.equal(probes[0], probes[2])
    assert not torch.equal(probes[0], probes[1])
    assert not torch.equal(probes[0], whole)


@pytest.mark.parametrize("method", METHODS)
def test_captions_ahead_are_those_of_the_next_updates(make_lab, tmp_path: Path, method: str, monkeypatch) -> None:
    """Text encoders that are moved to the device encode them in the same turn."""
    lab, ahead = make_lab(), []
    cls = {"flow_matching": FlowMatching, "offline_dpo": OfflineDpo}[method]
    fitted = cls(cls.Options(data=folder_of(tmp_path), batch=2))
    honest = lab.backbone.encode
    monkeypatch.setattr(lab.backbone, "encode", lambda texts, later: ahead.extend(next(later) for _ in range(4)) or honest(texts))
    with torch.no_grad():
        fitted.collect(lab, "ocr")
    expected = [row.caption for step in (1, 2) for row in fitted._drawn(lab, "ocr", step, range(2))]
    assert ahead == expected


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_loaded(tmp_path: Path, method: str) -> None:
    tasks = ["ocr", "pickscore"]
    given = data(tmp_path, tuple(tasks))
    assert resolve(method, tasks, overrides=given).params["data"]["ocr"] == str(tmp_path / "ocr")
    with pytest.raises(UsageError, match=f"method '{method}' has no images for task 'pickscore': set params.data.pickscore"):
        resolve(method, tasks, overrides=given[:1])
    with pytest.raises(UsageError, match=r"unknown task in params\.data 'ocrs'; did you mean 'ocr'"):
        resolve(method, ["ocr"], overrides=[given[0].replace(".ocr=", ".ocrs=")])
    with pytest.raises(UsageError, match=r"nowhere has no metadata\.jsonl"):
        resolve(method, ["ocr"], overrides=["params.data.ocr=nowhere"])
    with pytest.raises(UsageError, match=r"params\.weights"):
        resolve(method, ["ocr"], overrides=[given[0], "params.weights.ocr=2"])
    metadata = tmp_path / "ocr" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("0-file_name.png", "none.png").replace("0-chosen", "none"))
    with pytest.raises(UsageError, match=r"metadata\.jsonl, line 1: there is no image"):
        resolve(method, ["ocr"], overrides=given[:1])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_captions_that_are_held_out_prompts_of_any_task_are_refused(tmp_path: Path, split: str) -> None:
    given = data(tmp_path, ("ocr", "geneval"))
    metadata = tmp_path / "ocr" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    leaked = load_task("geneval", "micro").prompts(split)[0].text
    rows[3]["text"] = f"  {leaked.upper()} "
    metadata.write_text("\n".join(map(json.dumps, rows)))
    assert resolve("flow_matching", ["ocr"], overrides=given[:1])
    with pytest.raises(UsageError, match=r"metadata\.jsonl, line 4: its caption is a held-out prompt of task 'geneval'"):
        resolve("flow_matching", ["ocr", "geneval"], overrides=given)


def test_a_run_is_not_continued_with_changed_files(tmp_path: Path, few_prompts) -> None:
    sets = ["budget.updates=2", "params.batch=2", "evaluation.steps=1", "evaluation.split=validation", "evaluation.points=[]"]
    spec = resolve("flow_matching", ["ocr"], overrides=[*sets, *data(tmp_path, ("ocr",))])
    session = Session(tmp_path / "results")
    summary = execute(spec, session)
    run = tmp_path / "results" / summary["folder"]
    recorded = json.loads((run / "provenance.jsonl").read_text())["inputs"]
    assert recorded == FlowMatching.inputs(spec)
    assert execute(spec, session) == summary
    (tmp_path / "ocr" / "0-file_name.png").write_bytes((tmp_path / "ocr" / "1-file_name.png").read_bytes())
    assert FlowMatching.inputs(spec) != recorded
    for finished in (True, False):
        if not finished:
            (run / "summary.json").unlink()
        with pytest.raises(UsageError, match="was started with different files for ocr; move it away"):
            execute(spec, session)
