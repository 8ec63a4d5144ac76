"""The whole application on a virtual clock, with faults drawn from a seed (docs/reliability.md)."""
