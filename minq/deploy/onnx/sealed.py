"""Files that carry a checksum: an ONNX model, and beside it its constants where they are large.

Protobuf holds less than 2 GB. Of a model that is larger, ONNX keeps the constants in a second file,
called after its own digest: whichever of the two a crash leaves behind, an old model finds its old
constants. Both lie in one folder, which may be moved.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path

import onnx
import onnx_ir as ir

from minq._work import write_whole

LARGEST = 2**31 - 2**24
"""The most bytes of constants that are kept in the model itself; the rest is room for its graph."""


def write(model: ir.Model, path: Path) -> None:
    """Check a model and write it, whole or not at all."""
    sizes = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value]
    path.parent.mkdir(parents=True, exist_ok=True)
    before = set(path.parent.glob(f"{glob.escape(path.name)}.*.data"))
    data = _write_constants(model, path) if sum(sizes) > LARGEST else None
    proto = ir.to_proto(model)
    if data is not None:
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                entry.value = data.name if entry.key == "location" else entry.value
    else:
        onnx.checker.check_model(proto, full_check=True)
    try:
        write_whole(path, lambda part: part.write_bytes(seal(proto.SerializeToString())))
    except BaseException:
        if data is not None and data not in before:
            data.unlink()
        raise
    for old in before - {data}:
        old.unlink()


def read(path: str | Path) -> tuple[bytes, int]:
    """The model's bytes, and the size of all that belongs to it.

    Raises FileNotFoundError, and ValueError for what is damaged, cut short or foreign.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write it with minq.to_onnx(q, path)")
    content = path.read_bytes()
    size = len(_entry(b""))
    if content[-size:] != _entry(content[:-size]):
        raise ValueError(
            f"{path.name} is damaged, cut short, or was not written by minq.to_onnx; "
            "write it again with minq.to_onnx(q, path)"
        )
    if b"minq.data" not in content:
        return content, len(content)
    entries = {e.key: e.value for e in onnx.load_from_string(content).metadata_props}
    digest, _, name = entries["minq.data"].partition("  ")
    data = path.with_name(name)
    if not data.is_file():
        raise FileNotFoundError(
            f"there is no file {data.name} beside {path.name}; it holds the constants, and the two "
            "are moved together"
        )
    if _digest(data) != digest:
        raise ValueError(
            f"{data.name} is damaged or cut short; write both again with minq.to_onnx(q, path)"
        )
    return content, len(content) + data.stat().st_size


def seal(content: bytes) -> bytes:
    """The content and its checksum, which protobuf reads as the last of the model's metadata."""
    return content + _entry(content)


def _entry(content: bytes) -> bytes:
    entry = onnx.StringStringEntryProto(
        key="minq.checksum", value=hashlib.sha256(content).hexdigest()
    )
    return onnx.ModelProto(metadata_props=[entry]).SerializeToString()


def _write_constants(model: ir.Model, path: Path) -> Path:
    """Move what is large into a file of its own; returns its path."""
    part = path.with_name(path.name + ".data.part")
    part.unlink(missing_ok=True)
    ir.external_data.unload_from_model(
        model, path.parent, part.name, size_threshold_bytes=min(1024, LARGEST)
    )
    digest = _digest(part)
    data = path.with_name(f"{path.name}.{digest[:16]}.data")
    model.metadata_props["minq.data"] = f"{digest}  {data.name}"
    return part.replace(data)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
