"""What a process says about itself: log lines, and the lag of its event loop."""
