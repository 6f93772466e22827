"""Any network as a graph of operators that the passes can read and change.

- ``capture``: ``torch.export``, and all that follows in order
- ``parts``, ``plain``, ``inplace``: nothing that is made of others, wrapped or overwritten
- ``rewrite``, ``recurrent``, ``idioms``, ``fills``: one form for what networks write in many
- ``constants``, ``spread``: what is known before the network runs
- ``chance``, ``sizes``, ``refusals``: random numbers, other paths, and what cannot be captured
"""

from minq.export.capture import CaptureError, capture, evaluation_copy, outside, unwrapped

__all__ = ["CaptureError", "capture", "evaluation_copy", "outside", "unwrapped"]
