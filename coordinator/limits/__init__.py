"""The budget of each upstream, shared by all workers: rates, pauses, breakers, and the robots.txt cache."""
