"""The main job, shown on a card made on the spot."""
