"""The models behind the gateway: the file that names them, and loading, routing to and unloading them."""
