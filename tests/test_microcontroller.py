"""C code on a Cortex-M3 and M4 that QEMU emulates: the same integers, and honest counts."""

import pytest
from networks import zoo_graph
from test_to_c import GRIDS, SMALL, assert_equal, written

from minqbook import zoo
from minqbook.chip import measure, toolchain

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
