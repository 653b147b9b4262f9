"""``fs-serve bench``: the commands that measure speed."""
