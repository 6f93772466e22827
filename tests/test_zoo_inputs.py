"""The pictures of the zoo are the same on every machine: no last bit decides a pixel."""

import json
import subprocess
import sys

import torch

from minqbook import zoo

DRAW = """
import json
from minqbook import zoo
print(json.dumps((zoo.photo_crops(6, size=48) * 128 + 127).int().tolist()))
"""


def test_older_vector_instructions_cut_the_same_photos(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True)
    theirs = torch.tensor(json.loads(done.stdout), dtype=torch.int32)
    assert theirs.equal((zoo.photo_crops(6, size=48) * 128 + 127).int())
