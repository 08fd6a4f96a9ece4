"""Training θ0 to write the facts that later questions ask for: rollouts, the loss, and the trainer."""
