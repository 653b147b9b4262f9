"""``fs-serve train``: the commands that train networks."""
