"""ASC MHL: the manifests of a folder, one generation after the other, in its ``ascmhl``."""
