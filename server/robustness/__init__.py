"""The object ``robustness`` of requests and answers: options, plan, policy, entries."""
