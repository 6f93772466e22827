"""Tiny data sets in the layouts of ImageNet, VOC 2012, COCO 2017 and GLUE, for the tests."""

import json

import numpy as np
from PIL import Image

WORDS = "the a good bad film plot cat dog runs sleeps was not is very".split()


def picture(path, seed, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.BILINEAR).save(path)


def imagenet(folder, classes=("n01440764", "n01443537", "n01484850"), each=2):
    for split in ("train", "val"):
        for k, name in enumerate(classes):
            for n in range(each):
                picture(folder / split / name / f"{split}_{n}.JPEG", 10 * k + n)
    return folder


def voc(folder, names=("2007_000033", "2007_000042", "2007_000061", "2007_000123")):
    root = folder / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for k, name in enumerate(names):
        size = (90, 60) if k % 2 else (60, 90)
        picture(root / "JPEGImages" / f"{name}.jpg", k, size)
        mask = np.zeros(size[::-1], np.uint8)
        mask[10:40, 10:40] = k + 1
        mask[10:12, 10:40] = 255
        (root / "SegmentationClass").mkdir(exist_ok=True)
        mask = Image.fromarray(mask, "P")
        mask.putpalette(list(range(256)) * 3)  # all of it: PNG keeps the numbers as they are
        mask.save(root / "SegmentationClass" / f"{name}.png")
    half = len(names) // 2
    (lists / "train.txt").write_text("\n".join(names[:half]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[half:]) + "\n")
    return folder


def coco(folder, pictures=3, size=(120, 80)):
    """The last picture has no box; the first has a crowd too."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        images, boxes = [], []
        for k in range(pictures):
            name = f"{k + 1:012d}.jpg"
            picture(folder / f"{split}2017" / name, k, size)
            images.append({"id": k + 1, "file_name": name, "width": size[0], "height": size[1]})
            for kind, crowd in [(1, 0), (90, 0), (1, 1)][: (3 if k == 0 else 2)]:
                if k == pictures - 1:
                    continue
                box = [10, 62, 60, 15] if crowd else [10, 20, 60 + k, 40]
                boxes.append(
                    {"id": len(boxes) + 1, "image_id": k + 1, "category_id": kind, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": crowd, "segmentation": []}
                )  # fmt: skip
        kinds = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
        text = json.dumps({"images": images, "annotations": boxes, "categories": kinds})
        (folder / "annotations" / f"instances_{split}2017.json").write_text(text)
    return folder


HEADERS = {
    "CoLA": None,
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    "\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse"
    "\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
}


def line(task, k, text):
    """One line of a file, as GLUE has it."""
    one, two, bit = text(), text(), str(k % 2)
    entailed = ("entailment", "not_entailment")[k % 2]
    three = ("neutral", "entailment", "contradiction")[k % 3]
    return {
        "CoLA": ["gj04", bit, "" if k % 2 else "*", one],
        "SST-2": [one, bit],
        "MRPC": [bit, "1", "2", one, two],
        "STS-B": [str(k), "news", "f", "2012", "3", "s", "s", one, two, f"{k % 6 * 0.95:.3f}"],
        "QQP": [str(k), "1", "2", one, two, bit],
        "MNLI": [str(k), "1", "1e", "fiction", "( a )", "( b )", "(R a)", "(R b)", one, two, three,
                 three],
        "QNLI": [str(k), one, two, entailed],
        "RTE": [str(k), one, two, entailed],
    }[task]  # fmt: skip


def glue(folder, tasks=tuple(HEADERS), lines=6, seed=0):
    random = np.random.default_rng(seed)

    def text():  # quotation marks are plain letters in these files
        return '"' + " ".join(random.choice(WORDS, random.integers(2, 9)))

    for task in tasks:
        (folder / task).mkdir(parents=True)
        for name in ("train.tsv", "dev_matched.tsv" if task == "MNLI" else "dev.tsv"):
            rows = ["\t".join(line(task, k, text)) for k in range(lines)]
            head = [HEADERS[task]] if HEADERS[task] else []
            (folder / task / name).write_text("\n".join(head + rows) + "\n", "utf-8")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", '"']
    (folder / "vocab.txt").write_text("\n".join(marks + WORDS) + "\n")
    return folder
