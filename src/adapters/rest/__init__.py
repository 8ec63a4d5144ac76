"""The REST side: Starlette routes, problems, and the guard at the door."""
