"""The book's own machinery: ``zoo`` (networks and data), ``tables`` (what was measured, and how),
``widgets`` (pictures to play with). It rests on minq; nothing in minq knows of it.
"""
