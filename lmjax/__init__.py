"""Language-model pretraining in pure JAX: four objectives, one trunk."""
