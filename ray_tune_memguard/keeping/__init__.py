"""Values that outlive the worker that made them: an actor on each node owns them."""
