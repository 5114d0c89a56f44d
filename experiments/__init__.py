"""Command-line programs: thin wrappers that parse flags, call the library and print results."""
