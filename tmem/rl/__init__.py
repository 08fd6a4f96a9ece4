"""Training θ0 to write what later pays: rollouts, the loss, and the trainer."""
