"""What both engines read of a response in the same way: its head, its headers, its body."""
