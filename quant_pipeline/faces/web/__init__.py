"""The page: what is stored and what it was worth, read without the database."""
