"""Training: data, objectives and one loop for every job."""
