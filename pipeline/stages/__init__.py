"""The stages, one file each: a frozen class of settings with one `run`."""
