"""What the notebooks share and a training script never needs: figures, exercise checks, data."""
