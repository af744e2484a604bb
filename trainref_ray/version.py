"""Which results belong together."""

METHOD_VERSION = 7
"""Part of every fingerprint: raised when a change of the code changes a stage's result for equal settings."""
