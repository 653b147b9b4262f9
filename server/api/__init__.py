"""Routes and the shapes of what they read and answer."""
