"""Many runs of experiments: suites, cells, executors, results on disk, and a history of margins."""
