"""The networks that a page of the book runs itself, on the reader's own picture.

networks  the files: FP32, INT8 and INT4, and what a page must know of them
samples   the pictures that are there before the reader brings one
answers   what ONNX Runtime answers on them; ``python -m minqbook.picture`` stores it for the pages
"""

from pathlib import Path

STORED = Path(__file__).with_name("stored.json")
"""What a page shows before anything is loaded."""
