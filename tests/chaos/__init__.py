"""``kill -9``, for real and again and again (docs/reliability.md)."""
