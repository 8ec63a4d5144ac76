"""The command line: always a client of a server."""
