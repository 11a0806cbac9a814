"""Networks, their weights, the loss and the checkpoint."""
