import os

# gRPC's core writes lines of its own to stderr, beside the errors that we report.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
