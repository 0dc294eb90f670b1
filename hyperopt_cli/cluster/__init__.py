"""Runs on a cluster: freezing recipes, the Slurm script and the Kubernetes manifest, and what became of a job."""
