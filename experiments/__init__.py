"""Programs that one runs: thin, they parse, call and print."""
