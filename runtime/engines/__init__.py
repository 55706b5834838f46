"""Engines: graphs compiled for one kind of device, for which sizes, and where they are kept."""
