"""The oracle beside its peers: each measurement in a process of its own, results as JSON."""
