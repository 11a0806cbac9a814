"""Tracking with MLflow: runs, metrics, artifacts and models. No other folder imports MLflow."""
