"""What a process says about itself: log lines and the delay of its event loop."""
