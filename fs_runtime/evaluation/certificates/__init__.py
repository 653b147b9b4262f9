"""How our bounds compare with those of the literature."""
