"""One compiled step and what stands around it: optimizer, mesh, checkpoints, reports."""
