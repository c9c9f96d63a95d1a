"""The mathematics of Adam in NumPy: Algorithm 1 as the oracle, the exact bound on its steps, and `diagnose`."""
