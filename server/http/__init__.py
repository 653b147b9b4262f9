"""Everything between a socket and a route: protocol, body limits, request ids and log, event streams, shutdown."""
