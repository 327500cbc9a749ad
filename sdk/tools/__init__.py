"""Parts of `sdk/run`."""
