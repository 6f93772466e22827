"""Make the networks' files, or store what they answer, for the pages.

python -m minqbook.picture                  stored.json again: a minute or two on one idle core
python -m minqbook.picture FOLDER NAME      the files of one network, into the folder
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from minqbook.picture import STORED
from minqbook.picture.answers import collect
from minqbook.picture.networks import NETWORKS, make


def main(*arguments: str) -> None:
    torch.set_num_threads(1)
    if arguments:
        make(arguments[1], Path(arguments[0]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in NETWORKS:
            print(name, flush=True)
            make(name, folder)
        STORED.write_text(json.dumps(collect(folder), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
