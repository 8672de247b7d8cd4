"""What commands show: a run while it goes on, and how it ended; tables of rows; what `fetch` and `check` found."""
