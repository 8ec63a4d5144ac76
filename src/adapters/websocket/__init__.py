"""The WebSocket side: the hub for frontends and detectors."""
