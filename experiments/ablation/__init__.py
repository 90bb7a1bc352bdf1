"""What each precision choice costs: the oracle under many policies against its fp64 self."""
