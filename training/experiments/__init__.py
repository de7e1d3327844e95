"""What shows the stages of training, ablations and gradient norms."""
