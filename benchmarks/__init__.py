"""Figures, each beside what it has to be measured against in the same run."""
