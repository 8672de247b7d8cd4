"""From a response to the records of its keys, by the user's parser."""
