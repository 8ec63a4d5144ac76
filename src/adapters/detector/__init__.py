"""The detector: sees cards come and go on this machine, and tells a server."""
