"""python -m minqbook.tables --model ...: each task's row, from files on disk to the printed table.

What depends on the network alone, test_rows.py tests for all eight rows."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_data
import torch
from PIL import Image
from torch import nn

from minq.qat import run as qat_run
from minqbook.tables import metrics, real
from minqbook.tables.paper import paper_tables
from minqbook.tables.rows import ROWS, Row

for name in ("timm", "effdet", "transformers", "torchmetrics", "pycocotools"):
    pytest.importorskip(name, reason="these rows need requirements-models.txt")

KIND = {"deeplab_v3": "voc", "efficientdet_d1": "coco", "bert_base": "glue"}
SIZE = {"inception_v3": 75, "efficientdet_d1": 128, "bert_base": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            settings = {"tasks": ("RTE",), "lines": 4} if kind == "glue" else {}
            path = tmp_path_factory.mktemp(kind)
            made[kind] = getattr(tiny_data, kind)(path, **settings)
        return made[kind]

    return folder


@pytest.fixture
def command(folders, tmp_path):
    """The command with tiny data; weights, input size and rounding as quick as they get."""

    def call(name, *rest, out=None):
        folder = folders(KIND.get(name, "imagenet"))
        line = f"--model {name} --weights random --size {SIZE.get(name, 32)} --rounding nearest"
        line += " --samples 2 --batch 2 --steps 2 --workers 0 --device cpu"
        if name == "bert_base":
            line += f" --tasks rte --tokenizer {folder / 'vocab.txt'}"
        out = out or tmp_path / f"{name}.json"
        line = [*line.split(), "--data", str(folder), "--out", str(out)]
        return real.main([*line, *map(str, rest)])

    return call


@pytest.fixture
def small_bert(monkeypatch):
    """In place of BERT-base: the same class, with one thin layer."""
    import transformers

    whole = ROWS["bert_base"].make
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 24}

    def make(source, classes, size=16):
        if source:
            return whole(source, classes, size)
        config = transformers.BertConfig(num_labels=classes, **small)
        return transformers.BertForSequenceClassification(config)

    monkeypatch.setitem(ROWS, "bert_base", dataclasses.replace(ROWS["bert_base"], make=make))
    return make


@pytest.fixture
def small_efficientdet(monkeypatch):
    """In place of EfficientDet-D1: the same class, with fewer layers."""
    import effdet

    whole = effdet.get_efficientdet_config
    small = {"backbone_name": "tf_efficientnet_b0", "fpn_cell_repeats": 1, "box_class_repeats": 1}

    def config(name):
        found = whole(name)
        found.update(small)
        return found

    monkeypatch.setattr(effdet.factory, "get_efficientdet_config", config)


@pytest.mark.parametrize("name", ["resnet18", "deeplab_v3", "efficientdet_d1", "bert_base"])
@pytest.mark.usefixtures("small_bert", "small_efficientdet")
def test_a_row_from_its_files_to_its_table(name, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(real.COLUMNS, "ptq", ("W8A8",))
    monkeypatch.setitem(real.COLUMNS, "qat", ("W4A8",))
    result = command(name, "--granularity", "tensor", "--limit", 2)
    title = ROWS[name].title
    assert result == json.loads((tmp_path / f"{name}.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.json"]  # nothing is left lying about
    cells = [(r["table"], r["bits"]) for r in result["records"]]
    assert cells == [("fp32", "FP32"), ("ptq", "W8A8"), ("qat", "W4A8")]
    assert all(0 <= r["value"] <= 100 and r["tested_on"] == 2 for r in result["records"])
    paper = paper_tables()
    row = [
        paper["ptq"][title]["FP32"],
        paper["ptq"][title]["per-tensor"]["W8A8"],
        paper["qat"][title]["per-tensor"]["W4A8"],
    ]
    assert [entry["paper"] for entry in result["table"]] == row
    printed = capsys.readouterr().out
    assert all(f"{value:8.2f}" in printed for value in row)
    assert title in printed and paper["metric"][title] in printed


# --- What is measured, on one small row -----------------------------------------------------------


def test_the_numbers_are_those_of_the_library_called_by_hand(command, folders):
    """FP32 and W8A8 on all test pictures; the same calibration, drawn by the seed."""
    from minq import ptq
    from minqbook.tables import data

    row, bits = ROWS["resnet18"], ("--columns", "fp32", "ptq", "--bits", "W4A8")
    records = command("resnet18", *bits, "--granularity", "channel")["records"]
    found = data.open_data(row, folders("imagenet"), 32)
    model = row.build(None, classes=3, size=32)
    x, labels = found.collate([found.test[k] for k in range(6)])
    q = ptq(
        model, data.calibration_batches(found, 2, 2, 0), weights=4, per_channel=True,
        rounding="nearest",
    )  # fmt: skip
    for record, net in zip(records, (model, q), strict=True):
        with torch.no_grad():
            right = (net(x).argmax(1) == labels).float().mean().item()
        assert record["value"] == pytest.approx(100 * right, abs=1e-3), record


def test_a_trained_network_in_a_file_is_what_is_measured(command, tmp_path, folders):
    """One whose last layer always says the second class."""
    model = ROWS["resnet18"].build(None, classes=3, size=32)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    result = command("resnet18", "--columns", "fp32", "--weights", tmp_path / "own.pth")
    assert result["table"][0]["ours"] == pytest.approx(100 / 3, abs=0.01)


@pytest.mark.usefixtures("thin")
def test_training_learns_what_the_data_say(command, tmp_path):
    """Each class has its colour; a random network does not know them, a trained one does."""
    folder = tiny_data.imagenet(tmp_path / "colours")
    colours = dict(zip(sorted(p.name for p in (folder / "val").iterdir()), "rgb", strict=True))
    for path in folder.rglob("*.JPEG"):
        shade = tuple(255 * (c == colours[path.parent.name]) for c in "rgb")
        Image.new("RGB", (48, 40), shade).save(path)
    cells = ("--columns", "fp32", "qat", "--bits", "W8A8", "--granularity", "channel")
    how = ("--data", folder, "--steps", 30, "--batch", 6, "--rate", 1e-2)
    before, after = (entry["ours"] for entry in command("resnet18", *cells, *how)["table"])
    assert before < 50 and after == 100


# --- Going on -------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def three_layers(pretrained, classes, size):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


THIN = dataclasses.replace(ROWS["resnet18"], make=three_layers)
"""In place of ResNet18, where it is not the network that is tested."""


@pytest.fixture
def thin(monkeypatch):
    monkeypatch.setitem(ROWS, "resnet18", THIN)


def interrupt(monkeypatch, owner, name, calls):
    """Let a function stop the command in place of its call number ``calls``."""
    whole, counted = getattr(owner, name), iter(range(calls))

    def stopping(*args, **settings):
        if next(counted, None) is None:
            raise Stopped
        return whole(*args, **settings)

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.usefixtures("thin")
def test_a_stopped_row_goes_on_with_the_next_cell(command, tmp_path, monkeypatch):
    cells = ("--columns", "fp32", "ptq", "--granularity", "tensor")
    whole = command("resnet18", *cells, out=tmp_path / "whole.json")
    with monkeypatch.context() as patch:
        interrupt(patch, real.Network, "measure", 2)
        with pytest.raises(Stopped):
            command("resnet18", *cells)
    kept = json.loads((tmp_path / "resnet18.json").read_text())["records"]
    assert [r["bits"] for r in kept] == ["FP32", "W8A8"]
    with monkeypatch.context() as patch:
        interrupt(patch, real.Network, "measure", 1)  # only what is missing
        result = command("resnet18", *cells)
    assert result["records"][:2] == kept and result["table"] == whole["table"]
    interrupt(monkeypatch, real, "Network", 0)
    assert command("resnet18", *cells) == result  # nothing is left to do


@pytest.mark.usefixtures("thin")
def test_other_settings_are_another_measurement(command):
    cell = ("--columns", "ptq", "--bits", "W8A8", "--granularity", "tensor")
    first = command("resnet18", *cell)
    second = command("resnet18", *cell, "--seed", 1)
    assert second["records"][0] == first["records"][0] and len(second["records"]) == 2
    assert second["table"][0]["ours"] == pytest.approx(second["records"][1]["value"], abs=0.01)


@pytest.mark.usefixtures("thin")
def test_a_stopped_training_goes_on_with_the_next_step(command, tmp_path, monkeypatch):
    monkeypatch.setattr(real, "EVERY", 1)
    cell = ("--columns", "qat", "--bits", "W8A8", "--granularity", "tensor", "--steps", 3)
    trained = []
    test = real.Network.test

    def watch(self, net):
        trained.append(dict(net.named_parameters()))
        return test(self, net)

    monkeypatch.setattr(real.Network, "test", watch)
    command("resnet18", *cell, out=tmp_path / "whole.json")
    with monkeypatch.context() as patch:
        interrupt(patch, qat_run.Run, "done", 2)
        with pytest.raises(Stopped):
            command("resnet18", *cell)
    kept = tmp_path / "resnet18-qat-W8A8-tensor.pt"
    assert torch.load(kept, weights_only=True)["step"] == 2
    steps = []
    done = qat_run.Run.done
    monkeypatch.setattr(qat_run.Run, "done", lambda run: (steps.append(run.step), done(run)))
    command("resnet18", *cell)
    assert steps == [2] and not kept.exists()
    assert all(torch.equal(v, trained[1][k]) for k, v in trained[0].items())


@pytest.mark.usefixtures("thin")
def test_a_stopped_rounding_goes_on_with_the_next_layer(command, tmp_path, monkeypatch):
    from minq.ptq import rounding

    cell = ("--columns", "ptq", "--bits", "W4A8", "--granularity", "tensor")
    cell += ("--rounding", "adaround", "--sweeps", 1)
    with monkeypatch.context() as patch:
        interrupt(patch, rounding, "adaround", 1)
        with pytest.raises(Stopped):
            command("resnet18", *cell)
    assert (tmp_path / "resnet18-ptq-W4A8-tensor.pt").exists()
    interrupt(monkeypatch, rounding, "adaround", 3 - 1)
    command("resnet18", *cell)
    assert [p.name for p in tmp_path.iterdir()] == ["resnet18.json"]


# --- BERT on its tasks ----------------------------------------------------------------------------


@pytest.fixture
def glue(tmp_path, small_bert):
    """The command on all tasks, and trained networks for them."""
    folder, networks = tiny_data.glue(tmp_path / "glue"), tmp_path / "networks"
    for task, spec in real.GLUE.items():
        classes = len(spec.classes) if isinstance(spec.classes, tuple) else spec.classes
        small_bert(None, classes).save_pretrained(networks / task)

    def call(*rest, weights=networks):
        return real.main(
            ["--model", "bert_base", "--data", str(folder), "--weights", str(weights),
             "--tokenizer", str(folder / "vocab.txt"), "--size", "16", "--samples", "4",
             "--workers", "0", "--device", "cpu", "--rounding", "nearest", "--granularity",
             "tensor", "--out", str(tmp_path / "bert.json"), *map(str, rest)]
        )  # fmt: skip

    return call


def test_the_score_of_glue_is_the_mean_over_its_tasks(glue, tmp_path, capsys):
    some = glue("--columns", "fp32", "ptq", "--bits", "W8A8", "--tasks", "cola", "stsb")
    assert [entry["ours"] for entry in some["table"]] == [None, None]
    result = glue("--columns", "fp32")
    assert len(result["records"]) == 4 + 6 and result["records"][:4] == some["records"]
    values = {r["task"]: r["value"] for r in result["records"] if r["bits"] == "FP32"}
    (entry,) = result["table"]
    assert len(values) == 8
    assert entry["ours"] == pytest.approx(sum(values.values()) / 8, abs=0.01)
    assert entry["mnli"] == values["mnli"]
    assert "mnli" in capsys.readouterr().out


def test_a_network_of_one_task_is_not_taken_for_all(glue, tmp_path):
    with pytest.raises(ValueError, match="give one for each task"):
        glue(weights=tmp_path / "networks" / "rte")
    with pytest.raises(FileNotFoundError, match="sst2/config.json"):
        glue(weights=tmp_path / "glue")
    alone = ("--columns", "fp32", "--tasks", "rte")
    a, b = glue(*alone, weights=tmp_path / "networks" / "rte"), glue(*alone)
    assert a["table"] == b["table"]


def test_without_trained_networks_each_task_is_learned_first(glue, tmp_path, monkeypatch):
    """The library's own weights are here those of another folder."""
    build, asked = Row.build, []

    def given(self, weights=None, **settings):
        asked.append(weights)
        task = tmp_path / "networks" / "rte"
        return build(self, task if weights == "pretrained" else weights, **settings)

    monkeypatch.setattr(Row, "build", given)
    monkeypatch.setattr(real, "FINE_TUNING", {"epochs": 30, "lr": 1e-2})
    first = glue("--columns", "fp32", "--tasks", "rte", weights="pretrained")
    folder = tmp_path / "bert" / "rte"
    assert (folder / "config.json").is_file()
    again = glue("--columns", "fp32", "ptq", "--tasks", "rte", "--bits", "W8A8",
                 weights="pretrained")  # fmt: skip
    assert asked == ["pretrained", folder]
    assert again["records"][0] == first["records"][0]
    (tmp_path / "bert.json").unlink()
    own = glue("--columns", "fp32", "--tasks", "rte", weights=tmp_path / "bert")
    assert own["records"][0]["value"] == first["records"][0]["value"]
    rows = build(ROWS["bert_base"], folder, classes=2).state_dict()
    before = build(ROWS["bert_base"], tmp_path / "networks" / "rte", classes=2).state_dict()
    changed = [k for k, v in rows.items() if not torch.equal(v, before[k])]
    assert len(changed) > 0.8 * len(rows)


# --- What is refused ------------------------------------------------------------------------------


def test_training_without_training_data_is_refused_before_anything_is_measured(tmp_path):
    folder = tiny_data.voc(tmp_path)
    (folder / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").unlink()
    line = ["--model", "deeplab_v3", "--data", str(folder), "--weights", "random"]
    line += ["--out", str(tmp_path / "out.json")]
    with pytest.raises(FileNotFoundError, match="--columns fp32 ptq"):
        real.main(line)
    assert not (tmp_path / "out.json").exists()


def test_the_file_of_another_row_is_refused(command, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"row": "bert_base", "records": []}))
    with pytest.raises(ValueError, match="is of bert_base, not resnet18"):
        command("resnet18", out=file)


def test_folders_that_are_not_imagenets_are_refused_with_imagenets_weights(command):
    with pytest.raises(ValueError, match="n01440764"):
        command("resnet18", "--weights", "pretrained")


def shell(*arguments):
    found = [str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_the_command_line_says_what_is_wrong_in_one_line_of_error(tmp_path, capsys):
    done = shell("minqbook.tables", "--model", "resnet18", "--data", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "DIR/val/n01440764/*.JPEG" in done.stderr
    with pytest.raises(SystemExit) as stopped:
        real.main(["--model", "resnet18", "--data", str(tmp_path), "--batch", "0"])
    assert stopped.value.code == 2 and "--batch must be at least 1" in capsys.readouterr().err


# --- Several processes ----------------------------------------------------------------------------


def shares(metric, batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def judged(folder, rank=0, world=1):
    """Every metric, on one process's share of three pictures and 30 answers."""
    import test_tables_metrics as unit

    from minqbook.tables import data

    mine = slice(rank, None, world)
    found = {}
    logits, labels = unit.random(30, 2), (unit.random(30, seed=1) > 0).long()
    for row, classes, task in [
        ("resnet18", 2, None), ("bert_base", 2, "mrpc"), ("bert_base", 2, "cola"),
        ("bert_base", 1, "stsb"),
    ]:  # fmt: skip
        metric = metrics.metric_of(ROWS[row], unit.dataset(classes), task)
        x, y = (logits[:, :1], logits[:, 1]) if classes == 1 else (logits, labels)
        found[str((row, task))] = shares(metric, [(x[mine], y[mine])])
    metric = metrics.metric_of(ROWS["deeplab_v3"], unit.dataset(21))
    pixels, masks = unit.random(3, 21, 4, 4), torch.arange(48).view(3, 4, 4) % 5
    found["deeplab_v3"] = shares(metric, [({"out": pixels[mine]}, masks[mine])])
    pictures = data.open_data(ROWS["efficientdet_d1"], folder, 128)
    boxes = torch.zeros(3, 2, 6)
    boxes[0, 0] = torch.tensor([10, 20, 70, 60, 0.9, 1])
    boxes[1, 0] = torch.tensor([12, 20, 71, 60, 0.8, 90])
    metric = metrics.CocoMap(pictures.test.coco)
    found["coco"] = shares(metric, [(boxes[mine], {"image": torch.tensor([1, 2, 3])[mine]})])
    return found


@pytest.mark.usefixtures("thin")
def test_two_processes_share_a_row_and_agree_with_one(tmp_path, folders):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    boxes = tiny_data.coco(tmp_path / "coco")
    line = ["--model", "resnet18", "--data", folders("imagenet"), "--weights", "random",
            "--size", 32, "--rounding", "nearest", "--samples", 2, "--workers", 0, "--device",
            "cpu", "--bits", "W8A8", "--granularity", "channel", "--steps", 2]  # fmt: skip
    done = shell(
        "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, boxes,
        *line, "--batch", 2, "--out", tmp_path / "two.json",
    )  # fmt: skip
    assert not done.returncode, done.stderr[-4000:]
    assert done.stdout.count("ImageNet top-1 accuracy") == 1
    both = [json.loads((tmp_path / f"judged_{k}.json").read_text()) for k in (0, 1)]
    alone = judged(boxes)
    assert both[0] == both[1] and all(v > 0.1 for v in alone.values())
    assert both[0] == pytest.approx(alone, rel=1e-5)
    two = json.loads((tmp_path / "two.json").read_text())
    one = real.main([*map(str, line), "--batch", "4", "--out", str(tmp_path / "one.json")])
    for a, b in zip(two["records"], one["records"], strict=True):
        assert a["table"] == b["table"] and a["tested_on"] == b["tested_on"] == 6
        if a["table"] != "qat":  # in which the two draw their pictures in another order
            assert a["value"] == b["value"]
        else:
            assert a["batch"] == b["batch"] == 4
    assert "2 processes" in two["machine"] and len(two["records"]) == 3
    assert not list(tmp_path.glob("*.pt"))


if __name__ == "__main__":
    _, folder, *line = sys.argv
    ROWS["resnet18"] = THIN
    with real.processes("cpu"):
        mine, world = qat_run.rank(), qat_run.world_size()
        result = judged(Path(folder), mine, world)
        (Path(folder).parent / f"judged_{mine}.json").write_text(json.dumps(result))
        real.main(line)
