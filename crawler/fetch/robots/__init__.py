"""robots.txt: its rules, and what they allow."""
