"""Received symbols to the planes that networks read, equalised."""
