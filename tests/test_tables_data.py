"""Readers of ImageNet's, VOC's, COCO's and GLUE's files, on tiny data sets in the same layouts."""

import csv
import json

import numpy as np
import pytest
import tiny_data
import torch
from PIL import Image

from minqbook.tables import data
from minqbook.tables.rows import ROWS

pytest.importorskip("timm", reason="these rows need requirements-models.txt")
VOC = "VOCdevkit/VOC2012"


@pytest.fixture(scope="module", params=["imagenet", "voc", "coco", "glue"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = getattr(tiny_data, kind)(tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


ROW = {"imagenet": "resnet18", "voc": "deeplab_v3", "coco": "efficientdet_d1", "glue": "bert_base"}


def opened(kind, folder, size=64, task="mrpc", **settings):
    if kind == "glue":
        settings |= {"task": task, "vocabulary": folder / "vocab.txt"}
    return data.open_data(ROWS[ROW[kind]], folder, size, **settings)


def whole(samples, collate):
    return collate([samples[k] for k in range(len(samples))])


# --- Each layout ----------------------------------------------------------------------------------


def test_pictures_are_prepared_as_the_network_was_trained(folders):
    from torchvision.models import ResNet18_Weights

    folder = folders("imagenet")
    found = opened("imagenet", folder, size=None)
    assert found.classes == 3 and len(found.test) == len(found.train) == 6
    x, label = found.test[3]
    picture = Image.open(folder / "val" / "n01443537" / "val_1.JPEG")
    expected = ResNet18_Weights.IMAGENET1K_V1.transforms()(picture)
    assert label == 1 and x.shape == (3, 224, 224)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


def test_only_training_pictures_are_distorted(folders):
    found = opened("imagenet", folders("imagenet"))
    assert torch.equal(found.calibration[0][0], found.calibration[0][0])
    assert not torch.equal(found.train[0][0], found.train[0][0])


def test_masks_follow_their_pictures_and_what_is_filled_up_does_not_count(folders):
    found = opened("voc", folders("voc"), size=100)
    x, masks = whole(found.test, found.collate)
    assert x.shape == (2, 3, 100, 100) and masks.shape == (2, 100, 100)
    for k, name in enumerate(["2007_000061", "2007_000123"]):
        file = folders("voc") / VOC / "SegmentationClass" / f"{name}.png"
        mask = torch.from_numpy(np.array(Image.open(file))).long()
        h, w = mask.shape  # smaller than the square: not resized
        assert torch.equal(masks[k, :h, :w], mask)
        assert (masks[k, h:] == 255).all() and (masks[k, :, w:] == 255).all()
        assert (x[k, :, h:] == 0).all() and (x[k, :, :h, :w] != 0).any()
    small, mask = opened("voc", folders("voc"), size=45).test[0]
    assert small.shape == (3, 45, 45)
    assert set(mask.unique().tolist()) <= {0, 3, 255}  # classes are never mixed
    assert (mask == 255).float().mean() < 0.5


def test_a_training_mask_is_distorted_as_its_picture(folders):
    """Where the picture is cut, so is its mask: both are filled up at the same places."""
    torch.manual_seed(0)
    found = opened("voc", folders("voc"), size=200)
    for _ in range(4):
        x, mask = found.train[0]
        outside = (x == 0).all(0)
        assert outside.any() and (mask[0][outside] == 255).float().mean() > 0.99
        assert (mask[0][~outside] < 255).float().mean() > 0.9


def test_boxes_are_scaled_with_their_pictures_and_the_way_back_is_kept(folders):
    found = opened("coco", folders("coco"), size=128)
    x, target = whole(found.test, found.collate)
    assert x.shape == (3, 3, 128, 128) and target["image"].tolist() == [1, 2, 3]
    scale = 128 / 120
    expected = torch.tensor([[20, 10, 60, 70], [20, 10, 60, 70.0]]) * scale  # no crowd
    torch.testing.assert_close(target["bbox"][0], expected)
    assert target["cls"][0].tolist() == [1, 90] and not len(target["cls"][2])
    torch.testing.assert_close(target["img_scale"].float(), torch.full((3,), 1 / scale))
    assert target["img_size"].tolist() == [[120, 80]] * 3
    mean, std = (torch.tensor(ROWS["efficientdet_d1"].preprocess[k]) for k in ("mean", "std"))
    image = Image.open(folders("coco") / "val2017" / "000000000001.jpg")
    image = image.resize((128, 85), Image.BICUBIC)  # as effdet resizes
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    expected = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(x[0, :, :85], expected, atol=1e-4, rtol=1e-4)
    assert len(found.train) == 2  # a picture without a box teaches nothing


@pytest.mark.parametrize("task", data.GLUE)
def test_every_task_is_read_as_its_columns_say(folders, task):
    folder, spec = folders("glue"), data.GLUE[task]
    lines = (folder / spec.folder / spec.test).read_text().splitlines()
    heads = tiny_data.HEADERS[spec.folder]
    first = lines[1 if heads else 0].split("\t")
    columns = heads.split("\t") if heads else ["", "label", "", "sentence"]
    found = opened("glue", folder, size=12, task=task)
    sample = found.test[0]
    assert len(found.test) == len(found.train) == 6
    assert set(sample) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", '"', *tiny_data.WORDS]
    texts = [first[columns.index(c)].replace('"', '" ').split() for c in spec.columns]
    if len(texts) == 1:
        spoken = ["[CLS]", *texts[0][:10], "[SEP]"]
        assert [words[i] for i in sample["input_ids"] if i] == spoken
    assert sample["input_ids"].shape == (12,) and sample["token_type_ids"].max() == len(texts) - 1
    label = first[columns.index(spec.label)]
    number = found.names.index(label) if found.names else float(label)
    assert sample["labels"] == torch.tensor(number, dtype=sample["labels"].dtype)
    assert sample["labels"].is_floating_point() == (task == "stsb")


def test_a_network_may_number_the_labels_in_another_way(folders):
    labels = {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2}
    usual, other = (
        opened("glue", folders("glue"), 12, "mnli", labels=v).test for v in (None, labels)
    )
    for a, b in zip(usual, other, strict=True):
        assert a["labels"] + b["labels"] == 2
    plain = opened("glue", folders("glue"), 12, "mnli", labels={"LABEL_0": 0, "LABEL_1": 1})
    assert plain.test[1]["labels"] == usual[1]["labels"]  # names that say nothing


# --- Calibration ----------------------------------------------------------------------------------


def test_calibration_is_drawn_from_the_training_data_by_the_seed(folders, kind):
    found = opened(kind, folders(kind), 128)
    (first, *_), again, other = (data.calibration_batches(found, 4, 2, s) for s in (0, 0, 1))
    leaves = torch.utils._pytree.tree_leaves
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(again[0]), strict=True))
    if kind in ("imagenet", "glue"):  # the others have two samples to choose from
        assert not all(torch.equal(a, b) for a, b in zip(leaves(again), leaves(other), strict=True))
    one = leaves(data.calibration_batches(found, 1, 1)[0])[0][0]
    samples = [leaves(found.collate([s]))[0][0] for s in found.calibration]
    assert sum(torch.equal(one, s) for s in samples) >= 1
    assert kind != "glue" or "labels" not in first
    assert len(data.calibration_batches(found, 1000, 1)) == len(found.calibration)


def test_without_training_data_calibration_takes_the_tests(tmp_path):
    folder = tiny_data.glue(tmp_path, tasks=("RTE",))
    (folder / "RTE" / "train.tsv").unlink()
    found = opened("glue", folder, 12, "rte")
    assert found.train is None and found.calibration is found.test


# --- Wrong layouts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, gone",
    [
        ("imagenet", "val"),
        ("voc", f"{VOC}/SegmentationClass"),
        ("voc", f"{VOC}/ImageSets/Segmentation/val.txt"),
        ("coco", "annotations/instances_val2017.json"),
        ("coco", "val2017"),
        ("coco", "train2017"),
        ("glue", "MRPC/dev.tsv"),
    ],
)
def test_what_is_missing_is_named_with_what_is_expected_and_found(tmp_path, kind, gone):
    folder = getattr(tiny_data, kind)(tmp_path)
    (folder / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        opened(kind, folder)
    text = str(error.value)
    task = ROWS[ROW[kind]].task
    assert f"there is no {gone}" in text and data.LAYOUTS[task] in text and "elsewhere" in text


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path, kind):
    with pytest.raises(FileNotFoundError, match="found in DIR: no such folder"):
        settings = {"task": "rte"} if kind == "glue" else {}
        data.open_data(ROWS[ROW[kind]], tmp_path / "nothing", **settings)


def test_pictures_without_class_folders_are_refused(tmp_path):
    for k in range(3):
        tiny_data.picture(tmp_path / "val" / f"ILSVRC2012_val_{k}.JPEG", k)
    with pytest.raises(FileNotFoundError, match="n01440764"):
        opened("imagenet", tmp_path)


def test_other_classes_to_train_on_than_to_test_on_are_refused(tmp_path):
    folder = tiny_data.imagenet(tmp_path)
    (folder / "train" / "n01484850").rename(folder / "train" / "n01491361")
    with pytest.raises(ValueError, match="n01484850, n01491361 is only in one"):
        opened("imagenet", folder)


def test_folders_that_trained_weights_would_number_differently_are_refused(tmp_path):
    found = opened("imagenet", tiny_data.imagenet(tmp_path, classes=("cat", "dog")))
    with pytest.raises(ValueError, match="found are 2, among them cat, dog"):
        data.check_synsets(found)
    from timm.data import ImageNetInfo

    names = tuple(sorted(ImageNetInfo().label_names()))
    assert len(names) == 1000
    data.check_synsets(data.Data(1000, None, None, None, names=names))  # nothing to say


def test_annotations_that_are_none_are_refused(tmp_path):
    folder = tiny_data.coco(tmp_path)
    file = folder / "annotations" / "instances_val2017.json"
    for text in ("not json", json.dumps({"images": [], "annotations": [], "categories": []})):
        file.write_text(text)
        with pytest.raises(ValueError, match="instances_val2017.json"):
            opened("coco", folder)


def test_a_file_with_other_columns_is_refused(tmp_path):
    folder = tiny_data.glue(tmp_path, tasks=("QNLI",))
    file = folder / "QNLI" / "dev.tsv"
    file.write_text(file.read_text().replace("question\t", "premise\t"))
    with pytest.raises(ValueError, match="no column question; found .* premise"):
        opened("glue", folder, 12, "qnli")


@pytest.mark.parametrize("task, bad", [("sst2", "a good film\t7"), ("stsb", "1\tx"), ("rte", "")])
def test_a_file_full_of_broken_lines_is_refused(tmp_path, task, bad):
    spec = data.GLUE[task]
    folder = tiny_data.glue(tmp_path, tasks=(spec.folder,))
    file = folder / spec.folder / spec.test
    lines = file.read_text().splitlines()
    if bad:
        file.write_text("\n".join([lines[0], *[bad] * 3]))
    else:
        file.write_text(lines[0])
    with pytest.raises(ValueError, match="good lines"):
        opened("glue", folder, 12, task)


def test_a_few_broken_lines_are_passed_over(tmp_path):
    """QQP's own file has some with too few columns."""
    folder = tiny_data.glue(tmp_path, tasks=("QQP",), lines=200)
    file = folder / "QQP" / "train.tsv"
    with file.open("a") as out:
        csv.writer(out, delimiter="\t").writerow(["200", "1", "2", "only one question"])
    assert len(opened("glue", folder, 12, "qqp").train) == 200


def test_a_vocabulary_that_is_not_there_is_named(tmp_path):
    folder = tiny_data.glue(tmp_path, tasks=("RTE",))
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        data.open_data(ROWS["bert_base"], folder, 12, task="rte", vocabulary=tmp_path / "RTE")
