"""What ONNX Runtime answers on the pictures that stand ready, as a page shows it at first."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import minq
from minqbook.picture.networks import BITS, NETWORKS, prepared
from minqbook.picture.samples import Sample, address, samples

SHOWN = 3
"""So many classes of each answer."""


class Files:
    """The files of one network, as ``networks.make`` wrote them, computed by ONNX Runtime."""

    def __init__(self, name: str, folder: Path) -> None:
        self.network = NETWORKS[name]
        self.info = json.loads((folder / f"{name}.json").read_text("utf-8"))
        self.sessions = {form: _session(folder / f"{name}.{form}.onnx") for form in BITS}
        self.looking = {
            form: _session(folder / f"{name}.{form}.onnx", base64.b64decode(look))
            for form, look in self.info["looks"].items()
        }

    def logits(self, form: str, x: np.ndarray) -> np.ndarray:
        """(N, 3, size, size) to (N, classes)."""
        return self.sessions[form].run(["output"], {"x": x})[0]

    def decibels(self, x: np.ndarray) -> dict[str, list[float]]:
        """For each quantized form and site, signal over quantization error, in dB."""
        tensors = {}
        for form, session in self.looking.items():
            names = [output.name for output in session.get_outputs()]
            tensors[form] = dict(zip(names, session.run(names, {"x": x}), strict=True)) | {"x": x}
        found: dict[str, list[float]] = {form: [] for form in BITS if BITS[form]}
        for site in self.info["sites"]:
            exact = tensors["fp32"][site["fp32"]].astype(np.float64)
            for form in found:
                held = tensors[form][site[form]["value"]].astype(np.float64)
                held = site[form]["scale"] * (held - site[form]["zero"])
                found[form].append(minq.sqnr(exact, held))
        return found

    def answer(self, sample: Sample) -> dict[str, Any]:
        """The likeliest classes of each form with their probabilities, and the decibels."""
        x = prepared(sample.pixels[None], self.network)
        tops = {}
        for form in BITS:
            e = np.exp((y := self.logits(form, x)[0].astype(np.float64)) - y.max())
            first = np.argsort(-e, kind="stable")[:SHOWN]
            tops[form] = [[int(i), round(float(e[i] / e.sum()), 4)] for i in first]
        rounded = {
            form: [round(v, 1) if math.isfinite(v) else None for v in found]  # JSON has no infinity
            for form, found in self.decibels(x).items()
        }
        return {"tops": tops, "sqnr": rounded}


def _session(path: Path, more: bytes = b"") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = path.read_bytes() + more
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def collect(folder: Path, names: tuple[str, ...] = tuple(NETWORKS)) -> dict[str, Any]:
    """All that a page shows before anything is loaded: pictures, answers, sizes of files."""
    kinds = {NETWORKS[name].kind for name in names}
    ready = {kind: samples(kind) for kind in sorted(kinds)}
    found: dict[str, Any] = {
        "samples": {
            kind: [{"alt": s.alt, "src": address(s)} for s in ready[kind]] for kind in ready
        },
        "networks": {},
    }
    for name in names:
        files = Files(name, folder)
        answers = [files.answer(sample) for sample in ready[files.network.kind]]
        shown = {top[0] for a in answers for tops in a["tops"].values() for top in tops}
        keys = ("title", "kind", "size", "middle", "mean", "std", "bytes")
        found["networks"][name] = {key: files.info[key] for key in keys} | {
            "classes": {str(i): files.info["classes"][i] for i in sorted(shown)},
            "sites": [site["name"] for site in files.info["sites"]],
            "answers": answers,
        }
    return found
