"""What a computation costs, whatever the machine: tracing it operator by operator, and the key it is known by."""
