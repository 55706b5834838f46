"""The last of what a network draws: colours fixed, clamped, rounded, pixels side by side."""
