"""The fleet's budget at each upstream: rates, pauses, breakers, and the robots.txt cache."""
