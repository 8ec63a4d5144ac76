"""Who runs admitted steps: this process."""
