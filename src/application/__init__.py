"""The use cases, and what they need of the world (``ports``)."""
