"""Systems: one published method per file; the file's name is the system's name."""
