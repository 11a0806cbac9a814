"""MLflow, and nowhere else."""
