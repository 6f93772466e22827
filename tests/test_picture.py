"""The networks that pages run: files with a look inside, stored answers."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from minq.deploy import to_integer
from minqbook.picture import STORED, networks, samples
from minqbook.widgets import OwnPicture
from minqbook.zoo import imagenet_samples

stored = json.loads(STORED.read_text("utf-8"))


def test_further_outputs_are_read_as_outputs(tmp_path):
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [3])],
        [onnx.helper.make_tensor_value_info("y", 1, [3])],
    )
    opset = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    content = model.SerializeToString() + networks.further_outputs(["a"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    y, a = session.run(["y", "a"], {"x": np.float32([-1, 0, 2])})
    assert a.tolist() == [0, 0, 2] and y.tolist() == [0, 0, -2]


def test_pictures_are_prepared_as_the_zoo_does():
    pictures, _ = imagenet_samples()
    pixels = (pictures[:2] * 128 + 127).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    again = networks.prepared(pixels, networks.NETWORKS["efficientnet_lite0"])
    assert (again == pictures[:2].numpy()).all()


def test_stored_answers_are_what_the_code_computes():
    """One network of the file, here by its integers: the simulation, not ONNX Runtime, is asked."""
    name, form = "resnet_basic", "int8"
    net = to_integer(networks.in_forms(name, [form])[form])
    pixels = np.stack([sample.pixels for sample in samples.samples("digit")])
    logits = net(torch.from_numpy(networks.prepared(pixels, networks.NETWORKS[name])))
    for p, known in zip(logits.softmax(1), stored["networks"][name]["answers"], strict=True):
        for index, probability in known["tops"][form]:
            assert float(p[index]) == pytest.approx(probability, abs=0.05)
        assert int(p.argmax()) == known["tops"][form][0][0]


def test_stored_answers_are_whole():
    assert list(stored["networks"]) == list(networks.NETWORKS)
    for name, known in stored["networks"].items():
        ready = stored["samples"][networks.NETWORKS[name].kind]
        assert len(known["answers"]) == len(ready)
        assert all(sample["src"].startswith("data:image/") and sample["alt"] for sample in ready)
        assert known["bytes"]["int4"] < known["bytes"]["int8"] < known["bytes"]["fp32"]
        for answer in known["answers"]:
            for tops in answer["tops"].values():
                assert {str(index) for index, _ in tops} <= set(known["classes"])
            assert all(len(v) == len(known["sites"]) for v in answer["sqnr"].values())
            assert np.mean(answer["sqnr"]["int8"][1:]) > np.mean(answer["sqnr"]["int4"][1:]) + 6


def test_a_sample_that_is_not_there():
    with pytest.raises(ValueError, match="sample must be from 0 to 3, not 4"):
        OwnPicture(sample=4)
