"""The long-running roles of a coordinator, and who holds them."""
