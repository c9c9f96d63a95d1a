"""The mathematics of Adam in NumPy alone: Algorithm 1 as the oracle, and the exact bound on its steps."""
