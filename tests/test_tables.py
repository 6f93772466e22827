"""The results in the book: a few cells measured again, and files that survive an interruption."""

import json

import pytest

from minqbook import zoo
from minqbook.tables import files, table1, table2
from minqbook.tables.registry import TABLES, measure


def stored(table):
    return json.loads(files.path_of(table).read_text("utf-8"))["records"]


def cell_of(record, table):
    return {key: record[key] for key in next(iter(TABLES[table].cells()))}


@pytest.mark.parametrize("name", ["resnet_basic", "text_encoder"])
def test_full_precision_accuracy_is_what_the_file_says(name):
    record = next(r for r in stored("fp32") if r["network"] == name)
    # A picture of 1000 may fall on the other side on another machine.
    assert table1.fp32_cell({"network": name})["accuracy"] == pytest.approx(
        record["accuracy"], abs=0.3
    )


@pytest.mark.parametrize(
    "network, method, bits, per_channel",
    [
        ("resnet_basic", "naive", "W2A8", False),
        ("resnet_basic", "pipeline", "W4A8", True),
        ("text_encoder", "pipeline", "W8A8", False),
    ],
)
def test_a_cell_measured_again_is_what_the_file_says(network, method, bits, per_channel):
    wanted = {"network": network, "method": method, "bits": bits, "per_channel": per_channel}
    record = next(r for r in stored("ptq") if wanted.items() <= r.items() and r["seed"] == 0)
    again = table1.ptq_cell(cell_of(record, "ptq"))
    # Threads and processors change the order of sums, and with it roundings at ties.
    assert again["accuracy"] == pytest.approx(record["accuracy"], abs=1.0)
    assert again["sqnr"] == pytest.approx(record["sqnr"], abs=0.7)


def test_the_pipeline_wins_where_naive_rounding_fails():
    records = {tuple(cell_of(r, "ptq").values()): r for r in stored("ptq")}
    for (name, method, bits, per_channel, seed), r in records.items():
        if method == "naive" and bits in ("W3A8", "W2A8") and r["sqnr"] < 10:
            better = records.get((name, "pipeline", bits, per_channel, seed))
            assert better is None or better["sqnr"] > r["sqnr"] + 2, (name, bits, per_channel)


def test_every_record_is_a_cell_of_its_table_and_stands_once():
    for table, (cells, _) in TABLES.items():
        known = [tuple(c.values()) for c in cells()]
        found = [tuple(cell_of(r, table).values()) for r in stored(table)]
        assert set(found) <= set(known) and len(found) == len(set(found)), table
        assert len(known) == len(set(known))


def test_an_interrupted_measurement_goes_on(tmp_path, monkeypatch):
    measured = []

    def measure_cell(cell):
        measured.append(cell["network"])
        return {"accuracy": 1.0}

    monkeypatch.setitem(TABLES, "fp32", TABLES["fp32"]._replace(measure=measure_cell))
    path = tmp_path / "fp32.json"
    measure("fp32", limit=3, path=path)
    assert [r["network"] for r in json.loads(path.read_text())["records"]] == list(zoo.NAMES[:3])
    result = measure("fp32", path=path)
    assert measured == list(zoo.NAMES) and len(result["records"]) == 8
    assert json.loads(path.read_text()) == result
    assert result["command"] == "python -m minqbook.tables fp32" and "torch" in result["versions"]
    assert not list(tmp_path.glob("*.part"))


# --- Table 10 -------------------------------------------------------------------------------------


def test_the_learning_rate_is_the_one_that_does_best_on_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    records = [
        {"network": "inception", "bits": "W4A4", "rate": 1e-3, "validation": 90.0, "test": 92.0},
        {"network": "inception", "bits": "W4A4", "rate": 3e-3, "validation": 91.0, "test": 91.0},
        {"network": "inception", "bits": "W8A8", "rate": 1e-4, "validation": 93.0, "test": 93.0},
    ]
    (tmp_path / "rates.json").write_text(json.dumps({"records": records}))
    assert table2.chosen_rate("inception") == 3e-3
    assert table2.chosen_rate("inception", "test") == 1e-3
    assert table2.chosen_rate("inception", bits="W4A8") == 3e-3, "one rate for all runs with 4 bits"
    assert table2.chosen_rate("inception", bits="W8A8") == 1e-4
    with pytest.raises(ValueError, match="python -m minqbook.tables rates"):
        table2.chosen_rate("detector")


def test_a_cell_of_table_2_trains(monkeypatch):
    monkeypatch.setattr(table2, "QAT_STEPS", {"W4A8": 2})
    monkeypatch.setattr(table2, "labelled", lambda name, split: zoo.test_set(name, 100))
    cell = {"network": "resnet_basic", "bits": "W4A8", "per_channel": True, "seed": 1}
    record = table2.qat_cell(cell)
    assert record["steps"] == 2 and record["rate"] == table2.chosen_rate("resnet_basic")
    assert all(record[key] > 50 for key in ("fp32", "ptq", "test", "validation"))


def test_training_wins_back_most_of_what_four_bit_activations_cost():
    lost = won = 0.0
    for r in stored("qat"):
        if r["bits"] == "W4A4" and r["fp32"] - r["ptq"] > 1:
            lost += r["fp32"] - r["ptq"]
            won += r["test"] - r["ptq"]
    assert won > 0.5 * lost
