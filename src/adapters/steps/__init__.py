"""The built-in steps: what happens to a camera card. ``sd_ingest`` puts them together.

The theory is in ``copying.py``; the card's side is ``cards.py``, the library's ``library.py``.
"""
