"""C code equals the network on integers, bit for bit, whatever GCC makes of it."""

import re
import subprocess
from itertools import cycle, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from integers import quantized
from networks import noise, settle, zoo_graph
from torch import nn
from torch.utils._pytree import tree_leaves

import minq
from minq.deploy.c import arena
from minq.deploy.c.write import CTensor
from minqbook import zoo
from minqbook.chip import toolchain

GRIDS = {
    "W8A8": {},
    "W4A8 per channel": {"weights": 4, "per_channel": True},
    "W8A8 per channel": {"per_channel": True},
    "W4A8": {"weights": 4},
}
SMALL = [*zip(zoo.NAMES, cycle(GRIDS), strict=False), ("mobilenet_v2", "W4A8 per channel")]
needs_gcc = pytest.mark.skipif(bool(toolchain.host_missing()), reason=toolchain.host_missing())


def written(folder, model, x, **settings):
    """A network on integers, and its files."""
    net = minq.to_integer(quantized(model, x, **settings))
    return net, minq.to_c(net, folder)


def assert_equal(net, files, program, samples, chip=None):
    """The program gives what the network gives, for each sample."""
    (first,) = files.inputs
    found = toolchain.run(files, program, [first.quantize(x) for x in samples], chip)
    for x, outputs in zip(samples, found.outputs, strict=True):
        for spec, numbers, y in zip(files.outputs, outputs, tree_leaves(net(x)), strict=True):
            assert torch.equal(spec.real(numbers).to(y.dtype), y), spec.name
    return found


@needs_gcc
@pytest.mark.parametrize("name, grid", SMALL)
def test_every_small_network_equals_its_integers(name, grid, tmp_path):
    net, files = written(tmp_path, zoo_graph(name), zoo.calibration_set(name, 2), **GRIDS[grid])
    samples = zoo.test_set(name, 2)[0].split(1)
    strict = toolchain.build(files, tmp_path / "strict", flags=toolchain.SANITIZERS)
    assert_equal(net, files, strict, samples)
    fast = toolchain.build(files, tmp_path / "fast", flags=("-O3",))
    assert_equal(net, files, fast, samples)


class Random(nn.Module):
    """A small network whose sizes are drawn."""

    def __init__(self, draw):
        super().__init__()
        c, k = draw(3, 9), draw(1, 4)
        self.first = nn.Conv2d(3, 2 * c, k, draw(1, 2), draw(0, k - 1), bias=bool(draw(0, 1)))
        self.second = nn.Conv2d(2 * c, 4 * c, draw(1, 3), 1, draw(0, 2), groups=2)
        self.third = nn.Conv2d(4 * c, 4 * c, 3, draw(1, 2), 2, dilation=draw(1, 2), groups=4 * c)
        self.last = nn.Linear(4 * c, draw(1, 5))
        self.pool, self.shape = nn.MaxPool2d(draw(2, 3), draw(1, 2), 1), draw(0, 1)
        self.average = nn.AvgPool2d(2, draw(1, 2), draw(0, 1), count_include_pad=bool(draw(0, 1)))

    def forward(self, x):
        x = self.pool(self.first(x).relu())
        x = self.average(nn.functional.hardtanh(self.third(self.second(x).relu()), 0, 6))
        return self.last(x.mean((2, 3))) if self.shape else torch.cat([x, x.flip(1)], 1)


@needs_gcc
@pytest.mark.parametrize("seed", range(4))
def test_networks_of_any_size_equal_their_integers(seed, tmp_path):
    random = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=random))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = settle(Random(draw))
    size = draw(7, 12), draw(7, 12)
    settings = [{}, {"symmetric": True}, {"weights": 4, "activations": 4}, {"per_channel": True}]
    net, files = written(tmp_path, model, noise(4, 3, *size), **settings[seed])
    assert not net.islands
    program = toolchain.build(files, tmp_path / "made", flags=toolchain.SANITIZERS)
    assert_equal(net, files, program, (1.3 * noise(3, 3, *size, seed=7)).split(1))


@needs_gcc
def test_ties_go_up_where_the_integers_do(tmp_path):
    """With steps of 1/2, 1 and 2 a sum is 2 x, and the output x / 2: a tie for every odd x."""
    x = torch.arange(256.0)[:, None]
    q = quantized(nn.Sequential(nn.Linear(1, 1, bias=False)), x)
    q.get_parameter("0.weight").data.fill_(1.0)
    ranges = {"0.weight_": (-64.0, 63.5), "input.": (0.0, 255.0), "0.": (0.0, 510.0)}
    for name, ends in ranges.items():
        minq.quantizers(q)[f"{name}quantizer"].set_range(*ends)
    answers, found = {}, {}
    for rounding in ("half_even", "half_up"):
        net = minq.to_integer(q, rounding=rounding)
        files = minq.to_c(net, tmp_path / rounding)
        program = toolchain.build(files, tmp_path / rounding / "made", flags=("-O2",))
        assert_equal(net, files, program, x[:64].split(1))
        answers[rounding], found[rounding] = net(x[:64]), files.source.read_text()
    assert (answers["half_even"] != answers["half_up"]).sum() == 16  # of 32 ties, every second
    assert "ties to even" in found["half_even"] and "ties up" in found["half_up"]


# --- The files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    return written(folder, zoo_graph("detector"), zoo.calibration_set("detector", 2), weights=4)


def test_inputs_and_outputs_stand_for_what_torch_quantizes():
    """On a scale that is a power of two torch's kernel is exact. No compiler is needed for this."""
    x = torch.linspace(-20, 20, 30).reshape(1, 2, 3, 5)
    spec = CTensor("x", "int8_t", (1, 2, 3, 5), True, torch.tensor(0.125), 3, (-128, 127))
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.125, 3, -128, 127)
    levels = theirs / 0.125 + 3
    assert torch.equal(spec.quantize(x), levels.long())
    in_memory = levels.permute(0, 2, 3, 1).flatten()
    assert torch.equal(spec.flat(levels).flatten(), in_memory)
    assert torch.equal(spec.real(in_memory), theirs.double())


def test_the_same_network_gives_the_same_bytes(detector, tmp_path):
    net, files = detector
    again = minq.to_c(net, tmp_path)
    assert again.source.read_bytes() == files.source.read_bytes()
    assert again.header.read_bytes() == files.header.read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["network.c", "network.h"]


def test_the_code_has_no_float_no_heap_and_one_header_of_c(detector):
    _, files = detector
    text = files.source.read_text() + files.header.read_text()
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    assert not re.findall(r"\b(float|double|malloc|free|memcpy)\b", code)
    assert set(re.findall(r"#include (\S+)", code)) == {"<stdint.h>", '"network.h"'}
    assert f"ARENA_BYTES {files.arena_bytes}\n" in text
    for layer in ("stem_0", "heads_0_0_0"):
        assert f": {layer}, " in text  # a comment names it, with its shapes


def done(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


class Clash(nn.Module):
    """A result called as a constant of the layer behind it, an input called as no name in C++."""

    def __init__(self):
        super().__init__()
        self.a_weight, self.a = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, new):
        return self.a(self.a_weight(new))


@needs_gcc
@pytest.mark.skipif(bool(toolchain.missing("g++")), reason=toolchain.missing("g++"))
def test_two_networks_are_linked_into_a_program_of_cpp(tmp_path):
    """It prints both answers, number by number."""
    tokens, calls, expected = torch.arange(4)[None], "", []
    for name in ("one", "other"):
        q = quantized(Clash(), tokens)
        net = minq.to_integer(q)
        out = minq.to_c(net, tmp_path, name=name).outputs[0]
        (y,) = [v for k, v in net.trace(tokens).items() if k == "a.quantizer"]
        expected += y.flatten().tolist()
        calls += f'{{ {out.dtype} y[8]; {name}(x, y); for (int v : y) std::printf("%d ", v); }}\n'
    main = tmp_path / "main.cpp"
    main.write_text(f"""#include "one.h"
#include "other.h"
#include <cstdio>
int main() {{ const int32_t x[] = {{0, 1, 2, 3}};
{calls}}}
""")
    for source in ("one.c", "other.c"):
        done(["gcc", *toolchain.STRICT, "-Wshadow", "-c", source], tmp_path)
    objects = ["one.o", "other.o"]
    done(["g++", "-Wall", "-Werror", "main.cpp", *objects, "-o", "both"], tmp_path)
    assert [*map(int, done(["./both"], tmp_path).split())] == expected


def test_results_that_live_at_once_do_not_overlap(detector):
    _, files = detector
    for a in files.arena:
        assert a.offset % 8 == 0 and a.end <= files.arena_bytes
        for b in files.arena:
            apart = a.end <= b.offset or b.end <= a.offset
            assert a == b or apart or a.last < b.first or b.last < a.first


def test_an_order_that_saves_memory_is_found(detector, tmp_path):
    net, files = detector
    plain = minq.to_c(net, tmp_path, order="graph")
    assert files.arena_bytes <= plain.arena_bytes
    assert sorted(files.steps) == sorted(plain.steps)


def test_what_cannot_be_written_is_named(tmp_path):
    x = noise(4, 3, 8, 8)
    cases = {
        "conv_transpose2d": nn.ConvTranspose2d(3, 2, 2),
        "leaky ReLU": nn.Sequential(nn.Conv2d(3, 2, 1), nn.LeakyReLU()),
        "groups of channels": nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
    }
    for words, model in cases.items():
        net = minq.to_integer(quantized(model, x))
        with pytest.raises(ValueError, match=words):
            minq.to_c(net, tmp_path)
    q = quantized(nn.Conv2d(3, 2, 1), x)
    with pytest.raises(ValueError, match='multipliers="fixed"'):
        minq.to_c(minq.to_integer(q, multipliers="float"), tmp_path)
    with pytest.raises(TypeError, match="to_integer first"):
        minq.to_c(q, tmp_path)
    net = minq.to_integer(q)
    for name in ("2d", "While", "while", "a-b"):
        with pytest.raises(ValueError, match="one that C allows"):
            minq.to_c(net, tmp_path, name=name)
    with pytest.raises(ValueError, match="order must be"):
        minq.to_c(net, tmp_path, order="fast")
    assert not list(tmp_path.iterdir())


# --- The arena ------------------------------------------------------------------------------------


@st.composite
def programs(draw):
    steps = []
    for k in range(draw(st.integers(1, 8))):
        reads = draw(st.sets(st.integers(0, k - 1), max_size=3)) if k else set()
        steps.append((f"t{k}", draw(st.integers(1, 40)), tuple(f"t{r}" for r in sorted(reads))))
    return steps


@given(programs(), st.sampled_from([1, 4, 8]))
def test_any_program_is_placed_without_overlap(steps, align):
    lives = arena.lifetimes(steps)
    placed = arena.place(lives, align)
    assert [p[:4] for p in placed] == [tuple(t) for t in lives]
    bytes_at = {}
    for p in placed:
        assert p.offset % align == 0
        for moment in range(p.first, p.last + 1):
            for byte in range(p.offset, p.end):
                assert bytes_at.setdefault((moment, byte), p.name) == p.name
    if align == 1:
        assert max(p.end for p in placed) >= arena.needed(lives)


@given(programs())
def test_no_order_of_a_small_program_needs_less(steps):
    steps = steps[:6]
    found = arena.best_order(steps)
    assert sorted(found) == list(range(len(steps)))

    def cost(order):
        return arena.needed(arena.lifetimes([steps[k] for k in order]))

    costs = []
    for order in permutations(range(len(steps))):
        try:
            costs.append(cost(order))
        except ValueError:  # it reads what is not written yet
            continue
    assert cost(found) == min(costs)


def test_steps_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="before it is written"):
        arena.lifetimes([("a", 1, ("b",)), ("b", 1, ())])
    with pytest.raises(ValueError, match="two steps write 'a'"):
        arena.lifetimes([("a", 1, ()), ("a", 1, ())])
