"""A chain of five small layers that reads digits of 8 x 8 pixels, for a picture in the page.

    python -m minqbook.zoo.chain        trains it again: seconds on one core

No biases and ReLUs between, so that a layer of zeros makes all behind it zero. A decay of |w| gives
its weights the long tails of larger networks. NumPy only.
"""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import numpy as np

from minq._work import write_whole

SIZES = (64, 16, 16, 16, 16, 10)
FILE = Path(__file__).parent / "weights" / "digit_chain.json"
PICTURES = 100
_STEPS, _BATCH, _RATE, _DECAY, _SEED, _TRAIN = 1200, 64, 3e-3, 0.05, 0, 1400


def digit_chain() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The trained weights, and 100 pictures with their digits.

    Returns:
        Five weights of shape (outputs, inputs), float32; pictures (100, 64), uint8 from 0 to 16, of
        which the network reads a sixteenth; digits (100,), uint8.

    >>> weights, pictures, digits = digit_chain()
    >>> [w.shape for w in weights], pictures.shape, digits.shape
    ([(16, 64), (16, 16), (16, 16), (16, 16), (10, 16)], (100, 64), (100,))
    """
    stored = json.loads(FILE.read_text("utf-8"))
    raw = {key: base64.b64decode(stored[key]) for key in ("weights", "pictures", "digits")}
    flat, found = np.frombuffer(raw["weights"], "<f2").astype(np.float32), []
    for inputs, outputs in zip(SIZES, SIZES[1:], strict=False):
        found.append(flat[: inputs * outputs].reshape(outputs, inputs))
        flat = flat[inputs * outputs :]
    pictures, digits = (np.frombuffer(raw[key], np.uint8) for key in ("pictures", "digits"))
    return found, pictures.reshape(PICTURES, -1), digits


def loss_and_gradients(
    weights: list[np.ndarray],
    x: np.ndarray,
    digits: np.ndarray,
    scales: np.ndarray | None = None,
) -> tuple[float, float, list[np.ndarray]]:
    """Mean cross-entropy, share of right answers, and the loss's derivative by each weight.

    With ``scales`` the weights are integers, and each layer's is its scale times them; derivatives
    are by that product. The scales are multiplied at the end, which ReLU allows. So sums of
    integers are exact, and where one is 0 it is so on every machine.
    """
    s, values = np.ones(len(weights)) if scales is None else scales, [x]
    for k, w in enumerate(weights, 1):
        y = values[-1] @ w.T
        values.append(np.maximum(y, 0) if k < len(weights) else y)
    logits, rows = np.prod(s) * values[-1], np.arange(len(x))
    z = logits - logits.max(1, keepdims=True)
    p = np.exp(z)
    p /= p.sum(1, keepdims=True)
    loss = np.log(np.exp(z).sum(1)) - z[rows, digits]
    g, gradients = p.copy(), []
    g[rows, digits] -= 1
    g /= len(x)
    for k in reversed(range(len(weights))):
        gradients.insert(0, np.prod(s[:k]) * (g.T @ values[k]))
        g = (g @ (s[k] * weights[k])) * (values[k] > 0)
    return float(loss.mean()), float((z.argmax(1) == digits).mean()), gradients


def train() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Adam on the first 1,400 pictures of scikit-learn's digits, in a drawn order."""
    from minqbook.zoo import photos

    with gzip.open(photos.folder("sklearn", "datasets/data") / "digits.csv.gz", "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    table = np.random.default_rng(0).permutation(table)
    x, digits = table[:, :64] / 16, table[:, 64].astype(int)
    rng = np.random.default_rng(_SEED)
    pairs = zip(SIZES, SIZES[1:], strict=False)
    weights = [rng.normal(size=(o, i)) * np.sqrt(2 / i) for i, o in pairs]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for t in range(1, _STEPS + 1):
        batch = rng.integers(0, _TRAIN, _BATCH)
        for k, g in enumerate(loss_and_gradients(weights, x[batch], digits[batch])[2]):
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g * g
            size = np.sqrt(second[k] / (1 - 0.999**t)) + 1e-8
            weights[k] = weights[k] - _RATE * (
                first[k] / (1 - 0.9**t) / size + _DECAY * np.sign(weights[k])
            )
    right = loss_and_gradients(weights, x[_TRAIN:], digits[_TRAIN:])[1]
    print(f"right on pictures it has not seen: {100 * right:.1f} %")
    return weights, table[:PICTURES, :64].astype(np.uint8), digits[:PICTURES].astype(np.uint8)


def main() -> None:
    weights, pictures, digits = train()
    raw = {
        "weights": np.concatenate([w.ravel() for w in weights]).astype("<f2").tobytes(),
        "pictures": pictures.tobytes(),
        "digits": digits.tobytes(),
    }
    text = {key: base64.b64encode(value).decode() for key, value in raw.items()}
    write_whole(FILE, lambda path: path.write_text(json.dumps(text, indent=1) + "\n", "utf-8"))


if __name__ == "__main__":
    main()
