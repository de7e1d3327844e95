"""Files and live signals to tokens and back, and what they hold."""
