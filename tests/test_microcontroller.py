"""C code on a Cortex-M3 and M4 that QEMU emulates: the same integers, and honest counts."""

import json

import pytest
import torch
from networks import Lambda, noise, zoo_graph
from test_to_c import GRIDS, SMALL, assert_equal, needs_gcc, written
from torch import nn

import minq
from minqbook import zoo
from minqbook.chip import measure, toolchain
from minqbook.chip.floats import to_float_c
from minqbook.tables.files import path_of

needs_chip = pytest.mark.skipif(bool(toolchain.chip_missing()), reason=toolchain.chip_missing())
CHIPS = list(toolchain.CHIPS.values())


@needs_chip
@pytest.mark.parametrize("k", range(len(SMALL) - 1))
def test_every_small_network_gives_its_integers_on_a_chip(k, tmp_path):
    (name, grid), chip = SMALL[k], CHIPS[k % 2]
    net, files = written(tmp_path, zoo_graph(name), zoo.calibration_set(name, 2), **GRIDS[grid])
    program = toolchain.build(files, tmp_path / "made", chip)
    found = assert_equal(net, files, program, zoo.test_set(name, 1)[0].split(1), chip)
    flash, ram = toolchain.sizes(program)
    assert flash > files.constant_bytes and ram > files.arena_bytes
    assert 0 < found.stack[0] < 2000


@needs_chip
@pytest.mark.parametrize("chip", ["Cortex-M3", "Cortex-M4F"])
def test_a_loop_of_known_length_is_counted(chip, tmp_path):
    """Two instructions a round, and next to nothing around it."""
    counted = measure.loop(toolchain.CHIPS[chip], 1_000_000, tmp_path)
    assert abs(counted - 2_000_000) < 5 * toolchain.TICK


@needs_gcc
@torch.no_grad()
def test_the_twin_in_floats_computes_the_unrounded_simulation(tmp_path):
    """Up to biases on their grid: attention with the factor behind its products."""
    model = Lambda(
        lambda m, x: m.b((m.q(x) @ m.k(x).transpose(1, 2) * 0.25).softmax(-1) @ m.v(m.norm(x))),
        **{name: nn.Linear(8, 8) for name in "qkvb"}, norm=nn.LayerNorm(8),
    )  # fmt: skip
    x = 2 * noise(4, 6, 8)
    q = minq.ptq(model, x, rounding="nearest", weight_range="min_max", progress=False)
    files = to_float_c(minq.to_integer(q), q, tmp_path)
    program = toolchain.build(files, tmp_path / "made", flags=("-O1",))
    (answer,) = toolchain.run(files, program, [x[:1]]).outputs[0]
    expected = measure.unrounded(q)(x[:1])
    assert (files.outputs[0].real(answer) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_stored_cells_are_all_there_and_right():
    """Integers bit for bit, floats but for the digits of single precision and of biases."""
    records = json.loads(path_of("chip").read_text("utf-8"))["records"]
    given = ("network", "chip", "numbers")
    assert {tuple(r[k] for k in given) for r in records} == {
        tuple(c.values()) for c in measure.cells()
    }
    assert all(r["away"] <= (5e-4 if r["numbers"] == "float" else 0) for r in records)
