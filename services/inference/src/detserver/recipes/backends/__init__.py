"""Libraries other than torch that run the networks: how they are converted, kept and called."""
